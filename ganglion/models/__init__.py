"""The networks. Importing this module registers them with timm."""

from . import sparx_studies as sparx_studies
from .backbone import Backbone, Stage
from .checkpoint import LoadReport, checkpoint_filter_fn, load_checkpoint
from .connections import Plan
from .sparx import SparX, SparXConfig
from .vmamba import VMamba, VMambaConfig
from .weight_files import CheckpointError, read_weights

__all__ = [
    "Backbone",
    "CheckpointError",
    "LoadReport",
    "Plan",
    "SparX",
    "SparXConfig",
    "Stage",
    "VMamba",
    "VMambaConfig",
    "checkpoint_filter_fn",
    "load_checkpoint",
    "read_weights",
]
