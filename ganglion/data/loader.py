"""Loaders: sources, transforms and samplers put together."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from .decode import UnreadableImage, blank
from .sampler import EvalSampler, Key, TrainSampler, draw
from .source import ImageSource, IndexedSource
from .stream import StreamSource
from .transforms import Transform
from .types import Batch, DataError, Processes, Targets, Unreadable

#: Image, target and what was skipped for it. Without an image, which then does not count, the target is None.
Sample = tuple[torch.Tensor | None, Any, list[Unreadable]]

#: From the images (C, H, W) of a batch, and their targets, to what the network and the loss are given. A target of None
#: belongs to an image of zeros, which does not count.
Collate = Callable[[list[torch.Tensor], list[Any]], tuple[torch.Tensor, Targets]]


def stack(images: list[torch.Tensor], targets: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, C, H, W) from images of one size, and from labels (B,) int64, -1 for what does not count; from floating-point
    tensors of one shape their stack, NaN for what does not count."""
    some = next((target for target in targets if isinstance(target, torch.Tensor)), None)
    if some is None:
        return torch.stack(images), torch.tensor([-1 if target is None else target for target in targets])
    unknown = torch.full_like(some, float("nan"))
    return torch.stack(images), torch.stack([unknown if target is None else target for target in targets])


def _seed(seed: int) -> None:
    """Seed everything that timm's and torchvision's transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


class _Images(Dataset[Sample]):
    """Transformed images by key. An unreadable one gives way to the next readable one in training, else to nothing."""

    def __init__(self, source: IndexedSource, transform: Transform, *, training: bool):
        self.source, self.transform, self.training = source, transform, training

    def __getitem__(self, key: Key) -> Sample:
        index, seed = key
        if index < 0:
            return None, None, []
        unreadable: list[Unreadable] = []
        for _ in range(len(self.source)):
            try:
                image, target = self.source.image(index)
                break
            except UnreadableImage as error:
                unreadable.append(Unreadable.because(self.source.name(index), error))
                if not self.training:
                    return None, None, unreadable
                index = (index + 1) % len(self.source)
        else:
            raise _none_readable(self.source, unreadable[0])
        if self.training:
            _seed(seed)
        return *self.transform(image, target), unreadable


class _Collate:
    """Samples -> Batch. What has no image becomes zeros of the shape of another."""

    def __init__(self, source: ImageSource, transform: Transform, collate: Collate):
        self.channels, self.transform, self.collate = source.channels, transform, collate

    def __call__(self, samples: list[Sample]) -> Batch:
        empty = next((torch.zeros_like(image) for image, _, _ in samples if image is not None), None)
        if empty is None:
            empty = torch.zeros_like(self.transform(blank(self.channels), None)[0])
        images, targets = self.collate(
            [empty if image is None else image for image, _, _ in samples],
            [target for _, target, _ in samples],
        )
        return Batch(images, targets, [b for _, _, unreadable in samples for b in unreadable])


class _Stream(IterableDataset[Sample]):
    """Transformed images of a stream: what this rank's loader processes give to batches `start_batch` to `batches` of
    an epoch. The loader takes a batch from each process in turn.

    workers: loader processes of all ranks; `here` of them are this rank's, from `first` on.
    """

    def __init__(
        self,
        source: StreamSource,
        transform: Transform,
        *,
        batch_size: int,
        batches: int,
        seed: int,
        training: bool,
        processes: Processes,
    ):
        self.source: StreamSource = source
        self.transform: Transform = transform
        self.training: bool = training
        self.batch_size: int = batch_size
        self.batches: int = batches
        self.seed: int = seed
        self.here: int = processes.readers
        self.first: int = processes.rank * self.here
        self.workers: int = processes.world_size * self.here
        self.epoch: int = 0
        self.start_batch: int = 0

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        # The loader asks its first process first: it takes the part of the one whose turn it is.
        worker = (self.start_batch + (info.id if info is not None else 0)) % self.here
        return self._train(worker) if self.training else self._evaluate(worker)

    def _evaluate(self, worker: int) -> Iterator[Sample]:
        for record in self.source.evaluation(self.first + worker, self.workers):
            try:
                image, target = self.source.decode(record)
            except UnreadableImage as error:
                yield None, None, [Unreadable.because(record.name, error)]
            else:
                yield *self.transform(image, target), []

    def _train(self, worker: int) -> Iterator[Sample]:
        """Position n of the epoch holds record n, or the next one that is readable. So nothing needs to be decoded
        to know what the positions before `start_batch` hold."""
        n = len(range(worker, self.start_batch, self.here)) * self.batch_size
        end = len(range(worker, self.batches, self.here)) * self.batch_size
        worker += self.first
        waiting, unreadable = 0, []
        for record in islice(self.source.training(worker, self.workers, self.seed, self.epoch), n, None):
            if n == end:
                break
            waiting += 1
            try:
                image, target = self.source.decode(record)
            except UnreadableImage as error:
                unreadable.append(Unreadable.because(record.name, error))
                if waiting > len(self.source):
                    raise _none_readable(self.source, unreadable[0]) from error
                continue
            first, n, waiting = n, min(n + waiting, end), 0
            for position in range(first, n):
                _seed(draw(self.seed, self.epoch, worker, position))
                yield *self.transform(image, target), unreadable
                unreadable = []


class StreamLoader:
    """A DataLoader over a stream that knows its epoch, its length in batches, and where to begin.

    Every rank gets `batches` batches, filled up with images that do not count: a network's forward pass may wait for
    the other ranks in evaluation, too (DDP sends buffers, FSDP gathers weights).

    It is its own `sampler`: trainers tell samplers the epoch.
    """

    batch_sampler = None  # what Lightning expects of everything that has a sampler

    def __init__(
        self, stream: _Stream, collate: Collate, *, epoch: int = 0, start_batch: int = 0, **options: Any
    ):
        self._stream, self._options = stream, options
        self._collate = _Collate(stream.source, stream.transform, collate)
        self._epoch, self._start = epoch, start_batch
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._start = epoch, 0

    def __len__(self) -> int:
        return self._stream.batches

    def __iter__(self) -> Iterator[Batch]:
        stream = self._stream
        stream.epoch, stream.start_batch = self._epoch, self._start
        batches = iter(
            DataLoader(stream, batch_size=stream.batch_size, collate_fn=self._collate, **self._options)
        )
        for _ in range(self._start, len(self)):
            yield next(batches, None) or self._collate([(None, None, [])])


Loader = DataLoader[Sample] | StreamLoader


def train_loader(
    source: ImageSource,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    epoch: int = 0,
    start_batch: int = 0,
    processes: Processes = Processes(),  # noqa: B008  frozen
    pin_memory: bool = False,
    collate: Collate = stack,
    groups: Sequence[int] | None = None,
) -> Loader:
    """Loader of augmented training batches.

    batch_size: of a rank. transform: takes and gives image and target. epoch, start_batch: where to begin;
    `loader.sampler.set_epoch` goes to another epoch's begin. groups: of every image, where those of a rank's batch have
    to be of one; not of streams.
    `len(loader)` is the number of batches of a whole epoch in any case. Images that fill no batch of all ranks are left
    out.

    The batches are a function of seed, epoch and position, for streams also of world_size and workers. For
    augmentation the process that loads (without workers, the caller's) seeds its generators before every image.

    Raises DataError where a stream has too few shards for the ranks and loader processes.
    """
    options: dict[str, Any] = {"num_workers": processes.workers, "pin_memory": pin_memory}
    world_size = processes.world_size
    if isinstance(source, StreamSource):
        source.check_workers(world_size * processes.readers, world_size)
        stream = _Stream(
            source,
            transform,
            batch_size=batch_size,
            batches=len(source) // (batch_size * world_size),
            seed=seed,
            training=True,
            processes=processes,
        )
        return StreamLoader(stream, collate, epoch=epoch, start_batch=start_batch, **options)
    sampler = TrainSampler(
        len(source),
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        start_batch=start_batch,
        rank=processes.rank,
        world_size=world_size,
        groups=groups,
    )
    return _indexed(source, transform, collate, sampler, training=True, batch_size=batch_size, **options)


def eval_loader(
    source: ImageSource,
    transform: Transform,
    *,
    batch_size: int,
    processes: Processes = Processes(),  # noqa: B008  frozen
    pin_memory: bool = False,
    collate: Collate = stack,
) -> Loader:
    """Loader of evaluation batches: every image once, over all ranks; what must not be counted has no target (-1).

    All ranks get equally many batches."""
    options: dict[str, Any] = {"num_workers": processes.workers, "pin_memory": pin_memory}
    if isinstance(source, StreamSource):
        workers = processes.readers
        filled = [-(-count // batch_size) for count in source.counts(processes.world_size * workers)]
        batches = max(sum(filled[first : first + workers]) for first in range(0, len(filled), workers))
        stream = _Stream(
            source,
            transform,
            batch_size=batch_size,
            batches=batches,
            seed=0,
            training=False,
            processes=processes,
        )
        return StreamLoader(stream, collate, **options)
    sampler = EvalSampler(
        len(source), batch_size=batch_size, rank=processes.rank, world_size=processes.world_size
    )
    return _indexed(source, transform, collate, sampler, training=False, batch_size=batch_size, **options)


def _indexed(
    source: ImageSource,
    transform: Transform,
    collate: Collate,
    sampler: Any,
    *,
    training: bool,
    **options: Any,
) -> DataLoader[Sample]:
    assert isinstance(source, IndexedSource)
    return DataLoader(
        _Images(source, transform, training=training),
        sampler=sampler,
        collate_fn=_Collate(source, transform, collate),
        persistent_workers=options["num_workers"] > 0,
        **options,
    )


def _none_readable(source: ImageSource, first: Unreadable) -> DataError:
    return DataError(f"none of the {len(source)} images can be read; {first.name}: {first.reason}")
