"""Vision backbones that replace attention with a recurrence walking the image: VMamba and SparX.

Importing the package registers its networks with timm.
"""

from .models import VMamba, VMambaConfig
from .ops import backends

__version__ = "0.1.0"

__all__ = ["VMamba", "VMambaConfig", "backends"]
