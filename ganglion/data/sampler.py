"""Which images a batch holds: a function of seed, epoch and position, and of nothing else.

A key is `(index, seed)`: the image, and what its augmentation draws its random numbers from. Every rank computes the
same order and takes its part of every global batch, so the order does not depend on how many ranks there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

Key = tuple[int, int]


def draw(*words: int) -> int:
    """A seed of 32 bits for a position in a run, such as (seed, epoch)."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def draws(count: int, *words: int) -> np.ndarray:
    """`count` seeds of 32 bits, uint32, for a position in a run."""
    return np.random.SeedSequence(words).generate_state(count)


class TrainSampler(Sampler[Key]):
    """A permutation of the images for each epoch; global batch b is its b-th piece of `batch_size * world_size`.

    batch_size: of a rank. start_batch: where the first epoch begins. The images that fill no global batch are left out.
    groups: of every image; a rank's batch then holds images of one group, but for the last ones of an epoch.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int,
        epoch: int = 0,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        groups: Sequence[int] | None = None,
    ):
        self.length: int = length
        self.batch_size: int = batch_size
        self.seed: int = seed
        self.epoch: int = epoch
        self.start_batch: int = start_batch
        self.rank: int = rank
        self.world_size: int = world_size
        if groups is not None and len(groups) != length:
            raise ValueError(f"{len(groups)} groups of {length} images: expected one of each")
        self.groups = groups

    @property
    def batches(self) -> int:
        return self.length // (self.batch_size * self.world_size)

    def __len__(self) -> int:
        """Images of this rank in a whole epoch, also where the first one begins in its middle."""
        return self.batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.start_batch = epoch, 0

    def __iter__(self) -> Iterator[Key]:
        stream = np.random.SeedSequence([self.seed, self.epoch])
        generator = torch.Generator().manual_seed(int(stream.generate_state(1)[0]))
        order = torch.randperm(self.length, generator=generator).tolist()
        if self.groups is not None:
            order = grouped(order, self.groups, self.batch_size)
        seeds = stream.spawn(1)[0].generate_state(self.length).tolist()  # one for every position
        whole = self.batch_size * self.world_size
        for batch in range(self.start_batch, self.batches):
            first = batch * whole + self.rank * self.batch_size
            for position in range(first, first + self.batch_size):
                yield order[position], seeds[position]


def grouped(order: Sequence[int], groups: Sequence[int], size: int) -> list[int]:
    """The indices in pieces of `size` of one group each, as they fill up; then what filled none, group by group."""
    waiting: dict[int, list[int]] = {group: [] for group in sorted(set(groups))}
    found: list[int] = []
    for index in order:
        piece = waiting[groups[index]]
        piece.append(index)
        if len(piece) == size:
            found += piece
            piece.clear()
    return found + [index for piece in waiting.values() for index in piece]


class EvalSampler(Sampler[Key]):
    """Every image once, spread over the ranks batch by batch; all ranks get equally many batches of equal size.

    What fills up the last ones has the index -1 and must not be counted.
    """

    def __init__(self, length: int, *, batch_size: int, rank: int = 0, world_size: int = 1):
        self.length: int = length
        self.batch_size: int = batch_size
        self.rank: int = rank
        self.world_size: int = world_size
        whole = batch_size * world_size
        self.batches: int = -(-length // whole)

    def __len__(self) -> int:
        return self._per_rank(self.batches - 1) + (self.batches - 1) * self.batch_size if self.batches else 0

    def _per_rank(self, batch: int) -> int:
        """Images of a rank in a batch: fewer in the last one, but the same number on every rank."""
        left = self.length - batch * self.batch_size * self.world_size
        return min(self.batch_size, -(-left // self.world_size))

    def __iter__(self) -> Iterator[Key]:
        for batch in range(self.batches):
            size = self._per_rank(batch)
            first = batch * self.batch_size * self.world_size + self.rank * size
            for index in range(first, first + size):
                yield (index if index < self.length else -1), 0
