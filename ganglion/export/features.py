"""A classifier as a pyramid of its stages' maps."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..models.registry import Pyramid


def pyramid_of(network: nn.Module) -> nn.Module:
    """The maps of a classifier's four stages, as `features_only=True` gives them, with its weights. The head goes.

    Raises ValueError for networks without stages.
    """
    whole: Any = network
    try:
        return Pyramid(whole, out_indices=(0, 1, 2, 3)).eval()
    except (AttributeError, AssertionError, IndexError) as error:
        raise ValueError(f"{type(network).__name__} has no maps of four stages: {error}") from error
