"""What passes between loaders, networks and those who count."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DataError(ValueError):
    """Data that are missing, empty, or broken beyond the allowed share."""

    def __init__(self, message: str):
        # From a loader process it arrives as the text of a traceback, which ends with the message.
        super().__init__(message.rpartition(f"{__name__}.DataError: ")[2].rstrip())


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
