"""What a network gets right on labelled images, and the speed at which it got through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from .classification.metrics import Counts

if TYPE_CHECKING:
    from ..data import Batch, Broken


class NetworkError(RuntimeError):
    """A network that cannot compute the images it is given, for most because of their size."""


class Metric(Protocol):
    """What looks at every batch of an evaluation."""

    def update(self, output: Tensor, targets: Tensor) -> None:
        """output: (B, C) logits. targets: (B,) int64, -1 for what does not count. Both on the network's device."""
        ...


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `evaluate` found.

    top1, top5: percent. loss: mean cross-entropy. images: how many count. skipped: how many could not be read.
    not_finite: for how many of those that count the output has a NaN, or is infinite; they count as wrong.
    images_per_second: of the whole loop, reading and decoding included. broken: what was skipped, and why.
    """

    top1: float
    top5: float
    loss: float
    images: int
    skipped: int
    not_finite: int = 0
    images_per_second: float
    broken: tuple[Broken, ...]


def evaluate(
    network: nn.Module,
    loader: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    channels_last: bool = False,
    also: Sequence[Metric] = (),
    progress: Callable[[Counts], None] | None = None,
) -> Result:
    """Run a network, which is in eval mode and on `device`, over all batches, without gradients.

    amp: dtype of autocast, None for none. channels_last: memory format of the images.
    also: further metrics, which are given the output of every batch.
    progress: called with the sums so far after each batch. Reading them waits for the device.

    Raises ValueError if the network is in train mode, NetworkError if it cannot compute the images.
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
            output, targets = compute(network, images), batch.targets.to(device, non_blocking=True)
            for metric in (counts, *also):
                metric.update(output, targets)
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
        not_finite=counts.not_finite,
        images_per_second=images / seconds,
        broken=tuple(broken),
    )


def compute(network: nn.Module, images: Tensor) -> Tensor:
    """The network's output for images (B, C, H, W).

    Raises NetworkError, with what the network says, for images that it cannot take; torch.OutOfMemoryError.
    """
    try:
        return network(images)
    except torch.OutOfMemoryError:
        raise
    # Networks refuse a size in ways of their own: an assertion of theirs, a layer's complaint of shapes.
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        if "allocate memory" in str(error):  # the CPU's way to be out of memory
            raise
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise NetworkError(
            f"{type(network).__name__} cannot compute images of shape {tuple(images.shape)}: {said}"
        ) from error


def match_classes(network: Sequence[str] | None, data: Sequence[str] | None) -> list[int] | None:
    """For each class of the data its index in the network's output, by name; None where they agree, or where one side
    names no classes, so that labels are indices already.

    Raises ValueError for classes of the data that the network does not have.
    """
    if network is None or data is None or list(data) == list(network[: len(data)]):
        return None
    foreign = sorted(set(data) - set(network))
    if len(foreign) == len(set(data)):
        raise ValueError(
            f"no class of the data has the name of one of the network's: class 0 is {data[0]!r} there and "
            f"{network[0]!r} here"
        )
    if foreign:
        names = ", ".join(foreign[:8]) + (", ..." if len(foreign) > 8 else "")
        raise ValueError(
            f"the network does not know {len(foreign)} of the {len(data)} classes of the data: {names}"
        )
    indices = {name: index for index, name in reversed(list(enumerate(network)))}
    return [indices[name] for name in data]
