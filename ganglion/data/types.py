"""What passes between loaders, networks and those who count."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DataError(ValueError):
    """Data that are missing, empty, or broken beyond the allowed share."""


class Broken(NamedTuple):
    """An image that could not be used."""

    name: str
    reason: str


class Batch(NamedTuple):
    """images: (B, C, H, W) float32, normalised. targets: (B,) int64, -1 for what does not count. broken: what was
    skipped."""

    images: Tensor
    targets: Tensor
    broken: list[Broken]
