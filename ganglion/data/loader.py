"""Loaders: sources, transforms and samplers put together."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .decode import BrokenImage
from .sampler import EvalSampler, Key, TrainSampler
from .source import ImageSource
from .transforms import Transform
from .types import Batch, Broken, DataError

_Sample = tuple[torch.Tensor | None, int, list[Broken]]


class _Images(Dataset[_Sample]):
    """Transformed images by key. A broken one gives way to the next readable one in training, else to nothing."""

    def __init__(self, source: ImageSource, transform: Transform, *, training: bool):
        self.source, self.transform, self.training = source, transform, training

    def __getitem__(self, key: Key) -> _Sample:
        index, seed = key
        counted = index >= 0
        index = max(index, 0)
        broken: list[Broken] = []
        for _ in range(len(self.source)):
            try:
                image, target = self.source.image(index)
                break
            except BrokenImage as error:
                if counted:
                    broken.append(Broken(self.source.name(index), str(error)))
                if not self.training:
                    return None, -1, broken
                index = (index + 1) % len(self.source)
        else:
            raise DataError("there is no readable image")
        if self.training:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  timm's augmentations draw from it
            torch.default_generator.manual_seed(seed)
        return self.transform(image), target if counted else -1, broken


class _Collate:
    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def __call__(self, samples: list[_Sample]) -> Batch:
        blank = torch.zeros(self.shape)
        images = torch.stack([blank if image is None else image for image, _, _ in samples])
        targets = torch.tensor([target for _, target, _ in samples])
        return Batch(images, targets, [b for _, _, broken in samples for b in broken])


def _loader(
    source: ImageSource, transform: Transform, sampler: Any, shape: Any, training: bool, **options: Any
):
    workers = options["num_workers"]
    return DataLoader(
        _Images(source, transform, training=training),
        sampler=sampler,
        collate_fn=_Collate(shape),
        persistent_workers=workers > 0,
        **options,
    )


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
) -> DataLoader:
    """Loader of augmented training batches; `batch_size` is per rank."""
    sampler = TrainSampler(
        len(source),
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        start_batch=start_batch,
        rank=rank,
        world_size=world_size,
    )
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": pin_memory}
    return _loader(source, transform, sampler, (), True, **options)


def eval_loader(
    source: ImageSource,
    transform: Transform,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Loader of evaluation batches, every image counted once."""
    sampler = EvalSampler(len(source), batch_size=batch_size, rank=rank, world_size=world_size)
    shape = tuple(transform(source.image(0)[0]).shape)
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": pin_memory}
    return _loader(source, transform, sampler, shape, False, **options)
