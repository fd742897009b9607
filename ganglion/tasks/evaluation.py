"""One loop that measures a network of any task, and its speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Batch, Collate, ImageSource, Transform, Unreadable, stack
from ..training.metrics import Metric, Metrics


class NetworkError(RuntimeError):
    """A network that cannot compute the images it is given, for most because of their size."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """On which images a network is to be measured; see the options of `ganglion validate`.

    root, split, reader: where they are, see `ganglion.data.open_dataset`. class_map, labels: files of the classes'
    names, and of the classes of images. by_number: labels are indices of the output, whatever the names are.
    limit: the first N images only.
    """

    root: str
    split: str | None = None
    reader: str = ""
    class_map: str | None = None
    labels: str | None = None
    by_number: bool = False
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class TestTimeAugmentation:
    """Each image at several scales and mirrored, and one answer for all of these.

    network: from the side of the images, None for the network's own, to one that takes what `transform` gives.
    description: the scales, for people.
    """

    __test__ = False  # no test, whatever its name is

    network: Callable[[int | None], nn.Module]
    transform: Transform
    description: str


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images to measure a network on, as a task's `labelled(model, request)` finds them.

    transform: from the side of the images in pixels, None for the network's own, to what happens to an image and its
    target. metrics: makes those of the task, of no image yet. warning: what a user should know, "" if nothing.
    augmented: test-time augmentation, None where the task has none. batch_size: images at a time where nobody says.
    """

    source: ImageSource
    transform: Callable[[int | None], Transform]
    metrics: Callable[[], Metrics]
    collate: Collate = stack
    warning: str = ""
    augmented: TestTimeAugmentation | None = None
    batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `evaluate` found.

    values: what the metrics say, by name. images: how many count. skipped: how many could not be read. not_finite: for
    how many of those that count the output has a NaN, or is infinite; they count as wrong.
    images_per_second: of the whole loop, reading and decoding included. unreadable: what was skipped, and why.
    titles: how a table names the values, as in `Metrics.TITLES`. metrics: what the values are of.
    """

    values: dict[str, float]
    images: int
    skipped: int
    not_finite: int = 0
    images_per_second: float
    unreadable: tuple[Unreadable, ...]
    titles: Mapping[str, str] = field(default_factory=dict)
    metrics: Any = None

    def title(self, name: str) -> str:
        return self.titles.get(name, name)


def evaluate(
    network: nn.Module,
    loader: Iterable[Batch],
    metrics: Metrics,
    *,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    channels_last: bool = False,
    also: Sequence[Metric] = (),
    progress: Callable[[Metrics], None] | None = None,
) -> Result:
    """Run a network, which is in eval mode and on `device`, over all batches, without gradients.

    metrics: of no image yet; they are given the output of every batch, and so is what is in `also`.
    amp: dtype of autocast, None for none. channels_last: memory format of the images.
    progress: called with the metrics so far after each batch. Reading them waits for the device.

    Raises ValueError if the network is in train mode, NetworkError if it cannot compute the images.
    """
    if network.training:
        raise ValueError(f"{type(network).__name__} is in train mode: call eval() first")
    device = torch.device(device)
    memory_format = torch.channels_last if channels_last else torch.preserve_format
    unreadable: list[Unreadable] = []
    start = time.perf_counter()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=amp, enabled=amp is not None),
    ):
        for loaded in loader:
            batch = loaded.to(device, memory_format)
            output = compute(network, batch.images)
            for metric in (metrics, *also):
                metric.update(output, batch)
            unreadable += batch.unreadable
            if progress is not None:
                progress(metrics)
    images = metrics.images  # waits for the device
    seconds = time.perf_counter() - start
    return Result(
        values=metrics.values(),
        images=images,
        skipped=len(unreadable),
        not_finite=metrics.not_finite,
        images_per_second=images / seconds,
        unreadable=tuple(unreadable),
        titles=dict(metrics.TITLES),
        metrics=metrics,
    )


def compute(network: nn.Module, images: Tensor) -> Any:
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
