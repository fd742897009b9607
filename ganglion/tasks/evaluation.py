"""Top-1, top-5 and loss of a network on labelled images, and the speed at which it got through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .metrics import Counts

if TYPE_CHECKING:
    from ..data import Batch, Broken


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `evaluate` found.

    top1, top5: percent. loss: mean cross-entropy. images: how many count. skipped: how many could not be read.
    images_per_second: of the whole loop, reading and decoding included. broken: what was skipped, and why.
    """

    top1: float
    top5: float
    loss: float
    images: int
    skipped: int
    images_per_second: float
    broken: tuple[Broken, ...]


def evaluate(
    network: nn.Module,
    loader: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    channels_last: bool = False,
    progress: Callable[[Counts], None] | None = None,
) -> Result:
    """Run a network, which is in eval mode and on `device`, over all batches, without gradients.

    amp: dtype of autocast, None for none. channels_last: memory format of the images.
    progress: called with the sums so far after each batch. Reading them waits for the device.

    Raises ValueError if the network is in train mode.
    """
    if network.training:
        raise ValueError(f"{type(network).__name__} is in train mode: call eval() first")
    device = torch.device(device)
    memory_format = torch.channels_last if channels_last else torch.preserve_format
    counts = Counts()
    broken: list[Broken] = []
    start = time.perf_counter()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=amp, enabled=amp is not None),
    ):
        for batch in loader:
            images = batch.images.to(device, non_blocking=True, memory_format=memory_format)
            counts.update(network(images), batch.targets.to(device, non_blocking=True))
            broken += batch.broken
            if progress is not None:
                progress(counts)
    images = counts.images  # waits for the device
    seconds = time.perf_counter() - start
    return Result(
        top1=counts.top1,
        top5=counts.top5,
        loss=counts.loss,
        images=images,
        skipped=len(broken),
        images_per_second=images / seconds,
        broken=tuple(broken),
    )
