"""Mean IoU, of one confusion matrix over all pixels of all images (mmsegmentation's definition)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...data import Batch, DataError
from ...data.masks import IGNORED, MaskSource
from ...errors import unknown
from ...heads.segmentor import resize_to
from ...training.metrics import Monitor
from ..evaluation import Labelled, Request
from ..loaded_model import LoadedModel
from .transforms import Resize, collate

MONITOR: Monitor = ("miou", "max")


class SegmentationMetrics:
    """The confusion matrix of the images seen so far: rows true classes, columns predicted ones.

    miou: mean over classes of intersection over union, in percent; of those that are in labels or predictions. macc:
    mean over classes that are in the labels of the fraction of their pixels that is right. aacc: fraction of all
    pixels that is right. Pixels without a label count nowhere.
    """

    TITLES: Mapping[str, str] = {"miou": "mIoU %", "macc": "mAcc %", "aacc": "aAcc %"}

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        n = len(self.class_names)
        self.confusion = torch.zeros((n, n), dtype=torch.int64)
        self.images = 0
        self.not_finite = 0

    def update(self, output: Tensor | list[Tensor], batch: Batch) -> None:
        """Add a batch. output: logits of `Segmentor`, resized to the label maps here."""
        targets: Any = batch.targets
        for logits, target in zip(output, targets, strict=True):
            labels = target["labels"] if isinstance(target, dict) else target
            if (labels == IGNORED).all():
                continue
            self.images += 1
            if not logits.isfinite().all():
                self.not_finite += 1
                continue
            if logits.shape[1:] != labels.shape:
                logits = resize_to(logits[None].float(), labels.shape)[0]
            self.confusion += confusion_of(logits.argmax(0), labels, len(self.confusion)).cpu()

    def reduce(self) -> SegmentationMetrics:
        """All processes' images; to be called by all of them."""
        total = SegmentationMetrics(self.class_names)
        parts: list[Any] = [(self.confusion, self.images, self.not_finite)]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, (self.confusion, self.images, self.not_finite))
        for confusion, images, not_finite in parts:
            total.confusion += confusion
            total.images += images
            total.not_finite += not_finite
        return total

    def values(self) -> dict[str, float]:
        iou, accuracy = self.per_class()
        true, all_pixels = self.confusion.diagonal().sum(), self.confusion.sum()
        aacc = (true.double() / all_pixels).item() if all_pixels else float("nan")
        return {
            "miou": 100 * iou.nanmean().item(),
            "macc": 100 * accuracy.nanmean().item(),
            "aacc": 100 * aacc,
        }

    def per_class(self) -> tuple[Tensor, Tensor]:
        """IoU and accuracy of each class, from 0 to 1, NaN where there is nothing to count."""
        right = self.confusion.diagonal().double()
        labelled, predicted = self.confusion.sum(1), self.confusion.sum(0)
        return right / (labelled + predicted - right), right / labelled


def confusion_of(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """(n, n) counts of pixels by true class and predicted class."""
    there = labels != IGNORED
    pairs = labels[there] * n_classes + predicted[there]
    return torch.bincount(pairs, minlength=n_classes**2).view(n_classes, n_classes)


def read_classes(file: Path) -> tuple[list[str], list[list[int]] | None]:
    """Names of classes, and their colours where they are given: a text file with a name a line, `name` or `name r g b`,
    or a JSON list of names, or of objects with name and color.

    Raises DataError for another file.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected a list of class names: {error}") from error
    if file.suffix.lower() == ".json":
        try:
            found = json.loads(text)
            found = found.get("classes", found) if isinstance(found, dict) else found
            if all(isinstance(entry, str) for entry in found):
                return list(found), None
            return [entry["name"] for entry in found], [list(entry["color"]) for entry in found]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}: expected a JSON list of names, or of objects with name and color"
            ) from error
    rows = [line.strip() for line in text.splitlines() if line.strip()]
    split = [row.rsplit(maxsplit=3) for row in rows]
    if rows and all(len(row) == 4 and all(part.isdigit() for part in row[1:]) for row in split):
        return [row[0] for row in split], [[int(part) for part in row[1:]] for row in split]
    return rows, None


def open_masks(
    root: str,
    split: str,
    *,
    images: str | None = None,
    masks: str | None = None,
    class_file: str | None = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> MaskSource:
    """root/images/SPLIT and root/annotations/SPLIT (or masks, labels), where folders are not named; the classes of
    `class_file`, root/classes.txt, labels.txt or classes.json unless they are given.

    Raises DataError where they are not there.
    """
    base = Path(root)
    if not base.is_dir():
        raise DataError(f"there is no folder {root}: expected images and masks")
    folder = base / "images" / split if images is None else base / images
    if masks is None:
        usual = [base / name / split for name in ("annotations", "masks", "labels")]
        mask_folder = next((path for path in usual if path.is_dir()), usual[0])
    else:
        mask_folder = base / masks
    if not folder.is_dir():
        there = sorted(p.name for p in base.iterdir() if p.is_dir())[:8]
        raise DataError(
            f"there is no folder {folder}: expected images; in {root} are {', '.join(there) or 'no folders'}"
        )
    if class_names is None:
        usual = [base / name for name in ("classes.txt", "labels.txt", "classes.json", "manifest.json")]
        file = base / class_file if class_file else next((path for path in usual if path.is_file()), None)
        if file is None:
            raise DataError(
                f"the classes of {root} are unknown: expected {usual[0]}, a name a line, or data.class_file"
            )
        class_names, colours = read_classes(file)
        options.setdefault("colours", colours)
    return MaskSource(folder, mask_folder, class_names=class_names, **options)


def labelled(model: LoadedModel, request: Request) -> Labelled:
    """Images with masks for a segmentor, by the names of its classes.

    Raises DataError where there are none, or where the classes are others.
    """
    channels = model.data_config["input_size"][0]
    reduce = model.data_config.get("reduce_zero_label", False)
    source = open_masks(
        request.root, request.split or "val", channels=channels, limit=request.limit, reduce_zero_label=reduce
    )
    names = source.class_names or []
    if request.by_number:
        if len(names) != model.num_classes:
            raise DataError(
                f"the data have {len(names)} classes, the network {model.num_classes}: expected its own"
            )
    elif model.class_names is not None and list(model.class_names) != names:
        missing = [name for name in model.class_names if name not in names]
        if missing:
            raise DataError(
                f"the classes are not those of {model.name}: {unknown('class', missing[0], names)} "
                "--by-number takes others in their order"
            )
        source = open_masks(
            request.root,
            request.split or "val",
            channels=channels,
            limit=request.limit,
            reduce_zero_label=reduce,
            classes=list(model.class_names),
        )
        names = list(model.class_names)

    def config(size: int | None) -> dict[str, Any]:
        return model.data_config | ({} if size is None else {"input_size": [channels, size, 4 * size]})

    return Labelled(
        source=source,
        transform=lambda size: Resize(config(size)),
        metrics=lambda: SegmentationMetrics(names),
        collate=collate,
    )
