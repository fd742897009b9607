"""Which classes a network gets wrong, and what it takes them for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Classes up to which a plot has a number in every cell, and a name at every row.
_NUMBERS, _NAMES = 12, 60
#: Cells of a side that a figure still resolves; of more classes, each cell is the highest of several.
_CELLS = 250
_LETTERS = 22
#: Counts from which a cell has percent in it.
_LARGE = 10_000


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """One class: its images, how many of them are right, and how many images of any class were taken for it."""

    index: int
    name: str
    images: int
    correct: int
    predicted: int

    @property
    def top1(self) -> float:
        """Percent of its images that are right (recall), NaN without images."""
        return 100 * self.correct / self.images if self.images else float("nan")

    @property
    def precision(self) -> float:
        """Percent that are right of the images that were taken for it, NaN if there are none."""
        return 100 * self.correct / self.predicted if self.predicted else float("nan")


@dataclass(frozen=True, kw_only=True)
class Confused:
    """`count` of the `images` images of the class `target` were taken for the class `predicted`."""

    target: str
    predicted: str
    count: int
    images: int


class Confusion:
    """The confusion matrix of labelled images, kept as its entries that are not 0.

    targets, predicted: (N,) integers, class indices. Images with a target of -1 are left out; a prediction of -1, of a
    network whose output was not finite, counts as wrong and as no class.
    names: of all classes.
    """

    def __init__(self, targets: np.ndarray, predicted: np.ndarray, names: Sequence[str]):
        counted = targets >= 0
        self.names: list[str] = list(names)
        pairs = np.stack([targets[counted], predicted[counted]], axis=1).astype(np.int64).reshape(-1, 2)
        self._pairs, self._counts = np.unique(pairs, axis=0, return_counts=True)

    @classmethod
    def of_counts(cls, counts: np.ndarray, names: Sequence[str]) -> Confusion:
        """From the matrix itself, (K, K) by target and prediction; of pixels, for instance."""
        made = cls(np.empty(0, np.int64), np.empty(0, np.int64), names)
        made._pairs = np.argwhere(counts > 0)
        made._counts = counts[counts > 0]
        return made

    def classes(self) -> list[ClassCounts]:
        """The classes that have images or were predicted, by index."""
        rows, columns = self._pairs.T
        size = len(self.names)
        images = np.bincount(rows, self._counts, size).astype(int)
        seen = columns >= 0
        predicted = np.bincount(columns[seen], self._counts[seen], size).astype(int)
        right = rows == columns
        correct = np.bincount(rows[right], self._counts[right], size).astype(int)
        return [
            ClassCounts(
                index=int(i),
                name=self.names[i],
                images=int(images[i]),
                correct=int(correct[i]),
                predicted=int(predicted[i]),
            )
            for i in np.flatnonzero(images + predicted)
        ]

    def worst(self, most: int) -> list[ClassCounts]:
        """Of the classes with errors those with the lowest top-1, of equal ones those with more images."""
        wrong = [row for row in self.classes() if row.correct < row.images]
        return sorted(wrong, key=lambda row: (row.top1, -row.images, row.index))[:most]

    def confused(self, most: int, target: int | None = None) -> list[Confused]:
        """The commonest pairs of a class and another that it was taken for; of `target` alone, if it is given."""
        rows, columns = self._pairs.T
        images = np.bincount(rows, self._counts, len(self.names)).astype(int)
        wrong = (rows != columns) & (columns >= 0)
        if target is not None:
            wrong &= rows == target
        chosen = np.flatnonzero(wrong)
        order = chosen[np.argsort(-self._counts[chosen], kind="stable")][:most]
        return [
            Confused(
                target=self.names[rows[i]],
                predicted=self.names[columns[i]],
                count=int(self._counts[i]),
                images=int(images[rows[i]]),
            )
            for i in order
        ]

    def matrix(self) -> tuple[list[int], np.ndarray]:
        """The classes that have images or were predicted, K of them, and (K, K) int64: images by target and
        prediction."""
        classes = [row.index for row in self.classes()]
        position = np.full(len(self.names), -1)
        position[classes] = np.arange(len(classes))
        found = np.zeros((len(classes), len(classes)), dtype=np.int64)
        known = self._pairs[:, 1] >= 0
        rows, columns = position[self._pairs[known]].T
        found[rows, columns] = self._counts[known]
        return classes, found


def plot_confusion(
    confusion: Confusion, title: str, path: str | Path | None = None, *, what: str = "images"
) -> Figure:
    """Draw the confusion matrix, each row as fractions of its class's images, and beside it the commonest errors.

    Up to 12 classes have their numbers in the cells, or percent where these are large; up to 60 their names at the
    axes. Of more than 250, a cell is the highest of its part of the matrix, so that a single confusion stays visible.

    what: what is counted. path: where to save the figure, if given; its suffix (.png, .svg, .pdf) decides the format.

    Returns the matplotlib figure, which belongs to no window. Raises ImportError if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_confusion needs matplotlib: pip install 'ganglion[viz]'") from error

    size = len(confusion.classes())
    side = 4.6 + 0.14 * min(max(size - 10, 0), _NAMES)
    figure = Figure(figsize=(side + 4.2, side), dpi=150, layout="constrained")
    figure.suptitle(shown(title), fontsize=10, parse_math=False)
    axes, text = figure.subplots(1, 2, width_ratios=(side, 3.4))
    draw_confusion(axes, text, confusion, what)
    if path is not None:
        figure.savefig(path, bbox_inches="tight")
    return figure


def draw_confusion(axes: Axes, text: Axes, confusion: Confusion, what: str = "images") -> None:
    """The matrix of `plot_confusion` on axes of a figure, and the list beside it on others. what: what is counted."""
    from matplotlib.colors import PowerNorm

    classes, counts = confusion.matrix()
    size = len(classes)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    # The square root shows a confusion of one in a hundred.
    drawn = axes.imshow(
        _pooled(shares),
        cmap="Blues",
        norm=PowerNorm(0.5, 0, 1),
        interpolation="nearest",
        extent=(-0.5, size - 0.5, size - 0.5, -0.5),
    )
    indices = "" if size <= _NAMES else " (index of the class)"
    axes.set_xlabel(f"predicted{indices}")
    axes.set_ylabel(f"label{indices}")
    axes.figure.colorbar(drawn, ax=axes, shrink=0.7, label=f"fraction of the label's {what}")
    if size <= _NAMES:
        names = [_short(confusion.names[i]) for i in classes]
        axes.set_xticks(range(size), names, rotation=90, parse_math=False)
        axes.set_yticks(range(size), names, parse_math=False)
        axes.tick_params(labelsize=9 if size <= _NUMBERS else 6)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda x, _: str(classes[int(x)]) if 0 <= x < size else "")
    if size <= _NUMBERS:
        large = counts.max(initial=0) >= _LARGE
        for i, j in zip(*np.nonzero(counts), strict=True):
            cell = f"{100 * shares[i, j]:.0f}" if large else str(counts[i, j])
            axes.text(j, i, cell, ha="center", va="center", fontsize=8, color=_ink(float(shares[i, j])))
    _list_errors(text, confusion)


def _ink(fraction: float) -> str:
    return "white" if fraction > 0.4 else "black"


def _short(name: str) -> str:
    name = shown(name)
    return name if len(name) <= _LETTERS else name[: _LETTERS - 3] + "..."


def _pooled(shares: np.ndarray) -> np.ndarray:
    """At most _CELLS rows and columns, each cell the highest of those that it stands for."""
    size = len(shares)
    if size <= _CELLS:
        return shares
    starts = np.unique(np.arange(_CELLS) * size // _CELLS)
    return np.maximum.reduceat(np.maximum.reduceat(shares, starts, axis=0), starts, axis=1)


def _list_errors(axes: Axes, confusion: Confusion) -> None:
    axes.axis("off")
    lines = [
        f"{_short(pair.target)} \N{RIGHTWARDS ARROW} {_short(pair.predicted)}: {pair.count} of {pair.images}"
        for pair in confusion.confused(16)
    ]
    body = "\n".join(["most confused", "", *lines]) if lines else "no errors"
    axes.text(0, 1, body, va="top", fontsize=7, transform=axes.transAxes, parse_math=False)
