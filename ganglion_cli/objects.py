"""What `ganglion validate` says of a detector's classes and images, beside the numbers of all."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .common import print_table, write_csv

if TYPE_CHECKING:
    from ganglion.data import ImageSource
    from ganglion.tasks.evaluation import Result
    from ganglion.tasks.loaded_model import LoadedModel

#: Lines of the worst classes, and of the images with the most missed objects; images that --worst writes.
_LINES, _IMAGES = 5, 20
#: Score from which on a detection counts, as in `ganglion predict`.
_THRESHOLD = 0.3
_COLUMNS = ("AP", "AP50", "AR")


class Detected:
    """`Details` of detection: average precision of each class, what objects are taken for, and which are missed."""

    REFUSES: ClassVar[tuple[str, ...]] = ("--data-reader", "--labels", "--class-map", "--crop-pct")
    SERVES: ClassVar = {
        "--per-class": (),
        "--predictions": (".json",),
        "--plot": (".png", ".svg", ".pdf"),
        "--worst": (),
    }
    also = ()

    def __init__(self, loaded: LoadedModel, source: ImageSource):
        from ganglion.data import CocoSource

        assert isinstance(source, CocoSource)
        self._loaded, self._source, self._names = loaded, source, loaded.readable_names()
        self._items = {item["image_id"]: item for item in source.targets()}

    def finish(self, result: Result) -> None:
        self._metrics: Any = result.metrics
        kinds = {kind: self._metrics.classes(kind) for kind in ("box", "mask")}
        counts = dict.fromkeys(range(len(self._names)), 0)
        for key in self._metrics.image_ids:
            for a in self._metrics.of_image(key)["objects"]:
                counts[a["label"]] += not a["iscrowd"]
        self._rows: list[dict[str, Any]] = [
            {"index": i, "name": name, "objects": counts[i]}
            | {
                f"{kind}_{column}": round(rows[i][k], 4) if rows[i][k] >= 0 else ""
                for kind, rows in kinds.items()
                for k, column in enumerate(_COLUMNS)
            }
            for i, name in enumerate(self._names)
        ]
        self._missed = self._metrics.missed(_IMAGES, _THRESHOLD)

    def show(self) -> None:
        from ganglion.errors import shown

        there = [row for row in self._rows if row["objects"]]
        worst = sorted(there, key=lambda row: (row["box_AP"], -row["objects"]))[:_LINES]
        if worst:
            print()
            rows = [
                (shown(r["name"]), str(r["objects"]), f"{r['box_AP']:.2f}", f"{r['mask_AP']:.2f}")
                for r in worst
            ]
            print_table(("worst classes", "objects", "box AP %", "mask AP %"), rows, right={1, 2, 3})
        if self._missed:
            print()
            rows = [
                (shown(self._items[key]["file"]), f"{len(lost)} of {self._single(key)}")
                for key, lost in self._missed[:_LINES]
            ]
            print_table((f"most missed, score {_THRESHOLD}", "objects"), rows, right={1})

    def summary(self) -> dict[str, Any]:
        from ganglion.errors import shown

        return {
            "classes": [row | {"name": shown(row["name"])} for row in self._rows if row["objects"]],
            "most_missed": [
                {"file": shown(self._items[key]["file"]), "missed": len(lost), "objects": self._single(key)}
                for key, lost in self._missed
            ],
        }

    def write(self, args: argparse.Namespace, title: str) -> None:
        if args.per_class is not None:
            write_csv(args.per_class, self._rows)
        if args.predictions is not None:
            self._write_results(args.predictions)
        if args.plot is not None:
            self._plot(args.plot, title)
        if args.worst is not None:
            self._draw_missed(args.worst)

    def _single(self, key: Any) -> int:
        """Objects of an image that are no crowds."""
        return sum(not a["iscrowd"] for a in self._metrics.of_image(key)["objects"])

    def _write_results(self, path: Path) -> None:
        """COCO's format of results, as its servers and tools take it: every detection, whatever its score."""
        from ganglion.files import replacing
        from ganglion.tasks.detection import rle

        results = [
            {
                "image_id": key,
                "category_id": self._source.category_ids[d["label"]],
                "bbox": [round(v, 2) for v in d["bbox"]],
                "score": d["score"],
                "segmentation": rle.as_text(d["segmentation"]),
            }
            for key in self._metrics.image_ids
            for d in self._metrics.of_image(key)["detections"]
        ]
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(results))

    def _plot(self, path: Path, title: str) -> None:
        from ganglion.analysis.precision_recall import detection_confusion, plot_detection
        from ganglion.files import replacing

        curves = {
            f"{kind}es" if kind == "box" else f"{kind}s": self._metrics.curves(kind)
            for kind in ("box", "mask")
        }
        confusion = detection_confusion(self._metrics, self._names, _THRESHOLD)
        with warnings.catch_warnings(), replacing(path) as temporary:
            # A letter that matplotlib's font lacks becomes a box.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            plot_detection(curves, confusion, title, temporary)

    def _draw_missed(self, folder: Path) -> None:
        """The images with the most missed objects, worst first: what was found, and what was not in outline."""
        from PIL import Image

        from ganglion.files import replacing
        from ganglion.tasks.detection import rle
        from ganglion.tasks.detection.overlay import draw, outline_missed
        from ganglion.tasks.prediction import read

        folder.mkdir(parents=True, exist_ok=True)
        for rank, (key, lost) in enumerate(self._missed, start=1):
            item, seen = self._items[key], self._metrics.of_image(key)
            found = [
                {"bbox": d["bbox"], "score": d["score"], "index": d["label"], "name": self._names[d["label"]],
                 "segmentation": rle.as_text(d["segmentation"])}
                for d in seen["detections"] if d["score"] >= _THRESHOLD
            ]  # fmt: skip
            image = read(self._source.path_of(item), self._source.channels)
            assert isinstance(image, Image.Image)
            missed = [(seen["objects"][i]["bbox"], self._names[seen["objects"][i]["label"]]) for i in lost]
            picture = outline_missed(draw(image, {"predictions": found}), missed)
            name = f"{rank:02d}_{Path(item['file']).stem}_missed{len(lost)}.jpg"
            with replacing(folder / name) as temporary:
                picture.save(temporary, quality=90)


def check_folder(args: argparse.Namespace) -> None:
    """Exit with status 2 where the folder of --worst holds something already."""
    folder: Path | None = args.worst
    if folder is None or args.overwrite:
        return
    if folder.exists() and not folder.is_dir():
        args.parser.error(f"--worst {folder}: it is a file, expected a folder")
    if folder.is_dir() and os.listdir(folder):
        args.parser.error(
            f"--worst {folder}: it holds files already. Expected another folder, or --overwrite"
        )
