"""Vision backbones that replace attention with a recurrence walking the image: VMamba and SparX.

Importing the package registers its networks with timm.
"""

import timm
from timm import create_model

from .analysis.connections_plot import plot_connections
from .export.model import export_model
from .heads import create_detector, create_segmentor
from .models import (
    CheckpointError,
    LoadReport,
    Plan,
    SparX,
    SparXConfig,
    VMamba,
    VMambaConfig,
    load_checkpoint,
    read_weights,
)
from .models.registry import is_own
from .ops import Route, backends, scan2d, selective_scan
from .tasks.loaded_model import LoadedModel, load_model
from .tasks.prediction import predict

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "LoadReport",
    "LoadedModel",
    "Plan",
    "Route",
    "SparX",
    "SparXConfig",
    "VMamba",
    "VMambaConfig",
    "backends",
    "create_detector",
    "create_model",
    "create_segmentor",
    "export_model",
    "list_models",
    "load_checkpoint",
    "load_model",
    "plot_connections",
    "predict",
    "read_weights",
    "scan2d",
    "selective_scan",
]


def list_models(filter: str = "*") -> list[str]:
    """Names of this library's networks that match a shell pattern."""
    return [name for name in timm.list_models(filter) if is_own(name)]
