"""The `torch` backend: any device, any floating dtype, no compiler, no Python loop over positions."""

from . import add_norm, scan2d, selective_scan

DEVICES = None

__all__ = ["DEVICES", "add_norm", "scan2d", "selective_scan", "unavailable"]


def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can."""
    return None
