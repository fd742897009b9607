"""What can be said about a network: its costs, what it computes, and the papers' figures of both."""

from .cka import layer_names, layer_similarity, mean_off_diagonal
from .erf import Square, contribution_squares, effective_receptive_field
from .scan_maps import diagonal_map, scan_map
from .scan_statistics import MemoryLength, scan_statistics

__all__ = [
    "MemoryLength",
    "Square",
    "contribution_squares",
    "diagonal_map",
    "effective_receptive_field",
    "layer_names",
    "layer_similarity",
    "mean_off_diagonal",
    "scan_map",
    "scan_statistics",
]
