"""What passes between loaders, networks and those who count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import shown


class DataError(ValueError):
    """Data that are missing, empty, or more unreadable than the allowed fraction."""

    def __init__(self, message: str):
        # From a loader process it arrives as the text of a traceback, which ends with the message.
        text = message.rpartition(f"{__name__}.DataError: ")[2].rstrip()
        super().__init__("\n".join(map(shown, text.split("\n"))))


class MissingSplit(DataError):
    """Data without the split that was asked for."""


class Unreadable(NamedTuple):
    """An image that could not be used."""

    name: str
    reason: str

    @classmethod
    def because(cls, name: str, error: Exception) -> Unreadable:
        return cls(shown(name), shown(error))


class Ragged(list[Tensor]):
    """Images (C, h, w) of sizes of their own, where a batch has one tensor else.

    sizes: (height, width) of each before it was resized: the frame in which its objects are wanted.
    """

    def __init__(self, images: Iterable[Tensor] = (), sizes: Iterable[tuple[int, int]] = ()):
        super().__init__(images)
        self.sizes: list[tuple[int, int]] = list(sizes)

    def to(
        self,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
        memory_format: torch.memory_format | None = None,
    ) -> Ragged:
        """As of a tensor; a memory format is one of four axes, which these images do not have."""
        return Ragged([image.to(device, dtype, non_blocking) for image in self], self.sizes)

    def pin_memory(self) -> Ragged:
        return Ragged([image.pin_memory() for image in self], self.sizes)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of a batch of them, with what they do not share as text."""
        return (len(self), *({tuple(image.shape) for image in self}))


#: Of a batch: a tensor with an entry for each image, or a dictionary for each image.
Targets = Tensor | list[dict[str, Any]]


class Batch(NamedTuple):
    """images: (B, C, H, W) float32, normalised. targets: an entry for each image; of classification (B,) int64, -1 for
    what does not count. unreadable: what was skipped."""

    images: Tensor
    targets: Targets
    unreadable: list[Unreadable]

    def to(
        self, device: torch.device | str, memory_format: torch.memory_format = torch.preserve_format
    ) -> Batch:
        """The batch on another device, its images in that memory format."""
        images = self.images.to(device, non_blocking=True, memory_format=memory_format)
        return Batch(images, _moved(self.targets, device), self.unreadable)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: _moved(entry, device) for name, entry in value.items()}
    return [_moved(entry, device) for entry in value] if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which of the processes that share the images this one is, and how many read for it.

    rank: of this process, from 0. world_size: processes that train or evaluate together. workers: loader processes of
    each; 0: it reads by itself.
    """

    rank: int = 0
    world_size: int = 1
    workers: int = 0

    @property
    def readers(self) -> int:
        """Processes that read for this rank, itself if there are no others."""
        return max(1, self.workers)
