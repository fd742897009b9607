"""What can be said about a network: its costs, what it computes, and the papers' figures of both."""

from .scan_maps import scan_map

__all__ = ["scan_map"]
