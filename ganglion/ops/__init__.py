"""The recurrence that walks an image: tensors in, tensors out."""

from .attention import Walk, walks
from .depthwise import causal_conv1d
from .dispatch import BackendError, BackendStatus, backends
from .norm_op import add_norm, norm
from .reference import scan2d_reference, selective_scan_reference
from .routes import PATTERNS, Route, pattern
from .scan2d_op import scan2d
from .selective_scan_op import selective_scan

__all__ = [
    "PATTERNS",
    "BackendError",
    "BackendStatus",
    "Route",
    "Walk",
    "add_norm",
    "backends",
    "causal_conv1d",
    "norm",
    "pattern",
    "scan2d",
    "scan2d_reference",
    "selective_scan",
    "selective_scan_reference",
    "walks",
]
