"""The `torch` backend: any device, any floating dtype, no compiler, no Python loop over positions."""

from . import scan2d, selective_scan

DEVICES = None

__all__ = ["DEVICES", "scan2d", "selective_scan", "unavailable"]


def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can."""
    return None
