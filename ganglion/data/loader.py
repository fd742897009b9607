"""Loaders: sources, transforms and samplers put together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from .decode import BrokenImage
from .sampler import EvalSampler, Key, TrainSampler
from .source import ImageSource, IndexedSource, Raw, StreamSource
from .transforms import Transform
from .types import Batch, Broken, DataError

_Sample = tuple[torch.Tensor | None, int, list[Broken]]


def _seed(seed: int) -> None:
    """Seed everything that timm's and torchvision's transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


class _Images(Dataset[_Sample]):
    """Transformed images by key. A broken one gives way to the next readable one in training, else to nothing."""

    def __init__(self, source: IndexedSource, transform: Transform, *, training: bool):
        self.source, self.transform, self.training = source, transform, training

    def __getitem__(self, key: Key) -> _Sample:
        index, seed = key
        if index < 0:
            return None, -1, []
        broken: list[Broken] = []
        for _ in range(len(self.source)):
            try:
                image, target = self.source.image(index)
                break
            except BrokenImage as error:
                broken.append(Broken(self.source.name(index), str(error)))
                if not self.training:
                    return None, -1, broken
                index = (index + 1) % len(self.source)
        else:
            raise DataError(
                f"none of the {len(self.source)} images can be read; {broken[0].name}: {broken[0].reason}"
            )
        if self.training:
            _seed(seed)
        return self.transform(image), target, broken


class _Collate:
    """Samples -> Batch. What has no image becomes zeros of the shape of the others."""

    def __init__(self, shape: tuple[int, ...] = ()):
        self.shape = shape

    def __call__(self, samples: list[_Sample]) -> Batch:
        blank = torch.zeros(self.shape)
        images = torch.stack([blank if image is None else image for image, _, _ in samples])
        targets = torch.tensor([target for _, target, _ in samples])
        return Batch(images, targets, [b for _, _, broken in samples for b in broken])


class _Stream(IterableDataset[_Sample]):
    """Transformed images of a stream, from batch `start_batch` of the epoch on.

    The reader gives every loader process its part of the stream and the loader takes a batch from each in turn, so each
    process knows how many of its images belong to the batches before.
    """

    def __init__(
        self, source: StreamSource, transform: Transform, *, batch_size: int, seed: int, training: bool
    ):
        self.source, self.transform, self.batch_size = source, transform, batch_size
        self.seed, self.training = seed, training
        self.epoch = self.start_batch = 0

    def __iter__(self) -> Iterator[_Sample]:
        worker = get_worker_info()
        place, places = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        before = len(range(place, self.start_batch, places)) * self.batch_size
        for n, (image, target) in enumerate(self.source):
            if n < before:
                continue
            if self.training:
                _seed(int(np.random.SeedSequence([self.seed, self.epoch, place, n]).generate_state(1)[0]))
            yield self.transform(image), int(target), []


class StreamLoader:
    """A DataLoader over a stream that knows its epoch, its length in batches, and where to begin.

    It is its own `sampler`: trainers tell samplers the epoch.
    """

    def __init__(self, stream: _Stream, batches: int, *, epoch: int, start_batch: int, **options: Any):
        self._stream, self._batches, self._options = stream, batches, options
        self._epoch, self._start = epoch, start_batch
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._start = epoch, 0

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        self._stream.epoch, self._stream.start_batch = self._epoch, self._start
        self._stream.source.dataset.set_epoch(self._epoch)
        self._stream.source.dataset.set_loader_cfg(num_workers=self._options["num_workers"])
        batches = DataLoader(self._stream, collate_fn=_Collate(), **self._options)
        for _, batch in zip(range(self._start, self._batches), batches, strict=False):
            yield batch


Loader = DataLoader | StreamLoader


def train_loader(
    source: ImageSource,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    epoch: int = 0,
    start_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Loader:
    """Loader of augmented training batches.

    batch_size: of a rank. epoch, start_batch: where to begin; `loader.sampler.set_epoch` goes to another epoch's begin.
    `len(loader)` is the number of batches of a whole epoch in any case. Images that fill no batch of all ranks are left
    out.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": pin_memory}
    if isinstance(source, StreamSource):
        stream = _Stream(source, transform, batch_size=batch_size, seed=seed, training=True)
        batches = len(source) // (batch_size * world_size)
        return StreamLoader(stream, batches, epoch=epoch, start_batch=start_batch, drop_last=True, **options)
    sampler = TrainSampler(
        len(source),
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        start_batch=start_batch,
        rank=rank,
        world_size=world_size,
    )
    return _indexed(source, transform, sampler, _Collate(), training=True, **options)


def eval_loader(
    source: ImageSource,
    transform: Transform,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Loader:
    """Loader of evaluation batches: every image once, over all ranks; what must not be counted has the target -1."""
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": pin_memory}
    if isinstance(source, StreamSource):
        stream = _Stream(source, transform, batch_size=batch_size, seed=0, training=False)
        batches = (
            -(-len(source) // (batch_size * world_size)) + num_workers
        )  # a process's last batch may be short
        return StreamLoader(stream, batches, epoch=0, start_batch=0, **options)
    sampler = EvalSampler(len(source), batch_size=batch_size, rank=rank, world_size=world_size)
    return _indexed(
        source, transform, sampler, _Collate(_shape(source, transform)), training=False, **options
    )


def _indexed(
    source: ImageSource,
    transform: Transform,
    sampler: Any,
    collate: _Collate,
    *,
    training: bool,
    **options: Any,
) -> DataLoader:
    assert isinstance(source, IndexedSource)
    return DataLoader(
        _Images(source, transform, training=training),
        sampler=sampler,
        collate_fn=collate,
        persistent_workers=options["num_workers"] > 0,
        **options,
    )


def _shape(source: ImageSource, transform: Transform) -> tuple[int, ...]:
    """Shape of a transformed image: that of the first one that can be read."""
    assert isinstance(source, IndexedSource)
    for index in range(len(source)):
        try:
            image: Raw = source.image(index)[0]
        except BrokenImage:
            continue
        return tuple(transform(image).shape)
    raise DataError(f"none of the {len(source)} images can be read")
