"""A part of the images set aside, where there is no split of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .decode import Raw
from .sampler import draws
from .source import ImageSource, IndexedSource
from .types import DataError

#: Sets the random numbers of the split apart from those of epochs, which count from 0.
_SPLIT = 0x73706C74


def split_off(source: ImageSource, fraction: float, seed: int) -> tuple[Part, Part]:
    """The images without a random `fraction` of them, and that fraction.

    Classes give in proportion to their size, and none is set aside whole. A function of the labels, the fraction and
    the seed, so the same on every rank and in a resumed run.

    Raises DataError where nothing can be set aside, and for a stream.
    """
    if not isinstance(source, IndexedSource):
        raise DataError(
            f"a fraction of {fraction:g} cannot be split off a stream: expected the name of a validation split"
        )
    labels = np.asarray(source.labels())
    order = np.lexsort((draws(len(labels), seed, _SPLIT), labels))  # class by class, shuffled within
    first = np.unique(labels[order], return_index=True)[1]  # of each class; they stay
    movable = np.delete(order, first)
    count = min(round(fraction * len(labels)), len(movable))
    if not count:
        raise DataError(
            f"a fraction of {fraction:g} of {len(labels)} images in {len(first)} classes leaves none for validation: "
            "expected a larger one, or a validation split"
        )
    # Evenly spread, so that classes give by their size.
    aside = movable[(2 * np.arange(count) + 1) * len(movable) // (2 * count)]
    kept = np.setdiff1d(order, aside)
    return Part(source, kept), Part(source, np.sort(aside))


class Part(IndexedSource):
    """Some images of a source."""

    def __init__(self, source: IndexedSource, indices: Sequence[int] | np.ndarray):
        self._source, self._indices = source, [int(index) for index in indices]
        self.channels: int = source.channels
        self.class_names: list[str] | None = source.class_names
        self.note: str = source.note

    def first(self, limit: int | None) -> Part:
        """The first N of them."""
        return self if limit is None else Part(self._source, self._indices[:limit])

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def num_classes(self) -> int:
        return self._source.num_classes

    def image(self, index: int) -> tuple[Raw, int]:
        return self._source.image(self._indices[index])

    def labels(self) -> list[int]:
        labels = self._source.labels()
        return [labels[index] for index in self._indices]

    def name(self, index: int) -> str:
        return self._source.name(self._indices[index])
