"""What passes between loaders, networks and those who count."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..errors import shown


class DataError(ValueError):
    """Data that are missing, empty, or broken beyond the allowed share."""

    def __init__(self, message: str):
        # From a loader process it arrives as the text of a traceback, which ends with the message.
        text = message.rpartition(f"{__name__}.DataError: ")[2].rstrip()
        super().__init__("\n".join(map(shown, text.split("\n"))))


class MissingSplit(DataError):
    """Data without the split that was asked for."""


class Broken(NamedTuple):
    """An image that could not be used."""

    name: str
    reason: str

    @classmethod
    def because(cls, name: str, error: Exception) -> Broken:
        return cls(shown(name), shown(error))


class Batch(NamedTuple):
    """images: (B, C, H, W) float32, normalised. targets: (B,) int64, -1 for what does not count. broken: what was
    skipped."""

    images: Tensor
    targets: Tensor
    broken: list[Broken]
