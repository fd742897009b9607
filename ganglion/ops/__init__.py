"""The recurrence that walks an image: tensors in, tensors out."""

from .backends import BackendError, BackendStatus, backends
from .reference import scan2d_reference, selective_scan_reference
from .routes import PATTERNS, Route, pattern
from .scan2d import scan2d
from .selective_scan import selective_scan

__all__ = [
    "PATTERNS",
    "BackendError",
    "BackendStatus",
    "Route",
    "backends",
    "pattern",
    "scan2d",
    "scan2d_reference",
    "selective_scan",
    "selective_scan_reference",
]
