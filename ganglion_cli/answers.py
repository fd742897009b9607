"""What `ganglion validate` says of a classifier's classes and images, beside the numbers of all."""

from __future__ import annotations

import argparse
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .common import print_table, write_csv

if TYPE_CHECKING:
    from ganglion.analysis.confusion import Confusion
    from ganglion.data import ImageSource
    from ganglion.tasks.classification.metrics import Answers
    from ganglion.tasks.evaluation import Result
    from ganglion.tasks.loaded_model import LoadedModel

#: Lines of the worst classes, and of the most confused pairs.
_LINES = 5
_LETTERS = 40


class Answered:
    """`Details` of classification: the confusion of the classes, and the answer for every image."""

    REFUSES: ClassVar[tuple[str, ...]] = ()
    SERVES: ClassVar = {"--per-class": (), "--predictions": (), "--plot": (".png", ".svg", ".pdf")}

    def __init__(self, loaded: LoadedModel, source: ImageSource):
        from ganglion.tasks.classification.metrics import Answers

        self._loaded, self._source, self._answers = loaded, source, Answers()
        self.also = [self._answers]

    def finish(self, result: Result) -> None:
        from ganglion.analysis.confusion import Confusion

        answers = self._answers
        self._confusion = Confusion(answers.targets, answers.predicted, self._loaded.readable_names())
        self._top1 = result.values["top1"]

    def show(self) -> None:
        print_errors(self._confusion)

    def summary(self) -> dict[str, Any]:
        return summary(self._confusion)

    def write(self, args: argparse.Namespace, title: str) -> None:
        if args.per_class is not None:
            write_per_class(args.per_class, self._confusion, self._loaded)
        if args.predictions is not None:
            write_predictions(args.predictions, self._answers, self._source, self._loaded)
        if args.plot is not None:
            plot(args.plot, self._confusion, f"{title}: top-1 {self._top1:.2f} %")


def print_errors(confusion: Confusion) -> None:
    """Print the worst classes and the most confused pairs, where there are errors."""
    worst = confusion.worst(_LINES)
    if not worst or len(confusion.names) < 2:
        return
    print()
    rows = []
    for row in worst:
        taken = confusion.confused(1, row.index)
        most = f"{_short(taken[0].predicted)} ({taken[0].count})" if taken else ""
        rows.append((_short(row.name), str(row.images), f"{row.top1:.2f}", most))
    print_table(("worst classes", "images", "top-1 %", "most often taken for"), rows, right={1, 2})
    if pairs := confusion.confused(_LINES):
        print()
        rows = [(f"{_short(p.target)} -> {_short(p.predicted)}", f"{p.count} of {p.images}") for p in pairs]
        print_table(("most confused", "images"), rows, right={1})


def summary(confusion: Confusion) -> dict[str, Any]:
    """The same for JSON."""
    from ganglion.errors import shown

    return {
        "worst_classes": [
            {"index": row.index, "name": shown(row.name), "images": row.images, "top1": row.top1}
            for row in confusion.worst(_LINES)
        ],
        "most_confused": [
            {
                "target": shown(pair.target),
                "predicted": shown(pair.predicted),
                "count": pair.count,
                "images": pair.images,
            }
            for pair in confusion.confused(_LINES)
        ],
    }


def write_per_class(path: Path, confusion: Confusion, loaded: LoadedModel) -> None:
    """A row for each class that has images or was predicted. Raises OSError."""
    labels = loaded.class_names or [""] * loaded.num_classes
    rows = [
        {
            "index": row.index,
            "label": labels[row.index],
            "name": row.name,
            "images": row.images,
            "correct": row.correct,
            "top1": _number(row.top1),
            "predicted": row.predicted,
            "precision": _number(row.precision),
        }
        for row in confusion.classes()
    ]
    write_csv(path, rows)


def write_predictions(path: Path, answers: Answers, source: ImageSource, loaded: LoadedModel) -> None:
    """A row for each image that counts, in the order of the data. Raises OSError."""
    from ganglion.data.source import IndexedSource

    assert isinstance(source, IndexedSource)
    names = loaded.readable_names()
    columns = (answers.targets, answers.predicted, answers.probability, answers.target_probability)
    rows = [
        {
            "image": source.name(index),
            "target": names[target],
            "predicted": names[predicted] if predicted >= 0 else "",
            "correct": int(target == predicted),
            "probability": _number(probability),
            "target_probability": _number(of_target),
        }
        for index, (target, predicted, probability, of_target) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        )
        if target >= 0
    ]
    write_csv(path, rows)


def plot(path: Path, confusion: Confusion, title: str) -> None:
    """Draw the confusion matrix. Raises OSError."""
    from ganglion.analysis.confusion import plot_confusion
    from ganglion.files import replacing

    with warnings.catch_warnings(), replacing(path) as temporary:
        # A letter that matplotlib's font lacks becomes a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        plot_confusion(confusion, title, temporary)


def _short(name: str) -> str:
    from ganglion.errors import shown

    name = shown(name)
    return name if len(name) <= _LETTERS else name[: _LETTERS - 3] + "..."


def _number(value: float) -> float | str:
    """As a person writes it, and nothing for NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else ""
