"""The networks. Importing this module registers them with timm."""

from .connections import Plan
from .vmamba import VMamba, VMambaConfig

__all__ = ["Plan", "VMamba", "VMambaConfig"]
