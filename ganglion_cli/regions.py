"""What `ganglion validate` says of a segmentor's classes and images, beside the numbers of all."""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .common import print_table, write_csv

if TYPE_CHECKING:
    from ganglion.data import ImageSource
    from ganglion.tasks.evaluation import Result
    from ganglion.tasks.loaded_model import LoadedModel
    from ganglion.training.metrics import Metric

#: Lines of the worst classes and images; images that --worst writes.
_LINES, _IMAGES = 5, 20


class Segmented:
    """`Details` of segmentation: IoU of each class, what its pixels are taken for, and the worst images."""

    REFUSES: ClassVar[tuple[str, ...]] = ("--data-reader", "--labels", "--crop-pct")
    SERVES: ClassVar = {
        "--per-class": (),
        "--predictions": (".json",),
        "--plot": (".png", ".svg", ".pdf"),
        "--worst": (),
    }

    def __init__(self, loaded: LoadedModel, source: ImageSource):
        from ganglion.data.masks import MaskSource
        from ganglion.tasks.segmentation.metrics import LabelMaps, WorstImages

        assert isinstance(source, MaskSource)
        self._loaded, self._source, self._names = loaded, source, loaded.readable_names()
        self._worst, self._maps = WorstImages(_IMAGES), LabelMaps()

    @property
    def also(self) -> Sequence[Metric]:
        return [self._worst, self._maps]

    def finish(self, result: Result) -> None:
        metrics: Any = result.metrics
        self._miou = result.values["miou"]
        iou, accuracy = (values.tolist() for values in metrics.per_class())
        confusion = metrics.confusion.numpy()
        self._confusion = confusion
        labelled, predicted = confusion.sum(1).tolist(), confusion.sum(0).tolist()
        self._rows: list[dict[str, Any]] = [
            {
                "index": i,
                "name": name,
                "pixels": labelled[i],
                "predicted": predicted[i],
                "iou": _percent(iou[i]),
                "accuracy": _percent(accuracy[i]),
            }
            for i, name in enumerate(self._names)
        ]

    def show(self) -> None:
        from ganglion.errors import shown

        there = [row for row in self._rows if row["iou"] != ""]
        if worst := sorted(there, key=lambda row: (row["iou"], -row["pixels"]))[:_LINES]:
            print()
            rows = [
                (shown(r["name"]), str(r["pixels"]), f"{r['iou']:.2f}", _text(r["accuracy"])) for r in worst
            ]
            print_table(("worst classes", "pixels", "IoU %", "accuracy %"), rows, right={1, 2, 3})
        if self._worst.entries:
            print()
            rows = [(self._source.name(i), f"{100 * v:.2f}") for v, i, _ in self._worst.entries[:_LINES]]
            print_table(("worst images", "mIoU %"), rows, right={1})

    def summary(self) -> dict[str, Any]:
        from ganglion.errors import shown

        return {
            "classes": [row | {"name": shown(row["name"])} for row in self._rows if row["iou"] != ""],
            "worst_images": [
                {"file": self._source.name(i), "miou": _percent(value)} for value, i, _ in self._worst.entries
            ],
        }

    def write(self, args: argparse.Namespace, title: str) -> None:
        if args.per_class is not None:
            write_csv(args.per_class, self._rows)
        if args.predictions is not None:
            self._write_maps(args.predictions)
        if args.plot is not None:
            self._plot(args.plot, f"{title}: mIoU {self._miou:.2f} %")
        if args.worst is not None:
            self._draw_worst(args.worst)

    def _write_maps(self, path: Path) -> None:
        """The label map of every image as run lengths, as `ganglion predict --json` has it."""
        from ganglion.files import replacing

        found = [{"file": self._source.name(i), **entry} for i, entry in self._maps.entries.items()]
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(found))

    def _plot(self, path: Path, title: str) -> None:
        from ganglion.analysis.confusion import Confusion, plot_confusion
        from ganglion.files import replacing

        with warnings.catch_warnings(), replacing(path) as temporary:
            # A letter that matplotlib's font lacks becomes a box.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            plot_confusion(Confusion.of_counts(self._confusion, self._names), title, temporary, what="pixels")

    def _draw_worst(self, folder: Path) -> None:
        """The images with the lowest mean IoU, worst first: what was predicted, and beside it what is right."""
        from PIL import Image

        from ganglion.files import replacing
        from ganglion.tasks.prediction import read
        from ganglion.tasks.segmentation.prediction import beside, draw, entry_of

        folder.mkdir(parents=True, exist_ok=True)
        for rank, (value, index, labels) in enumerate(self._worst.entries, start=1):
            file = self._source.path(index)
            image = read(file, self._source.channels)
            assert isinstance(image, Image.Image)
            _, truth = self._source.image(index)
            picture = beside(*(draw(image, entry_of(shown, self._names)) for shown in (labels, truth)))
            name = f"{rank:02d}_{file.stem}_miou{100 * value:.0f}.jpg"
            with replacing(folder / name) as temporary:
                picture.save(temporary, quality=90)


def _percent(value: float) -> float | str:
    return round(100 * value, 4) if math.isfinite(value) else ""


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
