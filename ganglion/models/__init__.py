"""The networks. Importing this module registers them with timm."""

from . import sparx_studies as sparx_studies
from .backbone import Backbone, Stage
from .connections import Plan
from .sparx import SparX, SparXConfig
from .vmamba import VMamba, VMambaConfig
from .weight_files import CheckpointError, read_weights
from .weight_loading import LoadReport, checkpoint_filter_fn, load_checkpoint
from .weight_names import to_ganglion, to_official

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
    "to_ganglion",
    "to_official",
]
