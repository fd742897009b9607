"""Mean IoU, of one confusion matrix over all pixels of all images (mmsegmentation's definition)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
from .augmented import test_time
from .folders import open_masks
from .transforms import Resize, collate

#: Classes that are resized at a time.
_CLASSES = 16

MONITOR: Monitor = ("miou", "max")


class SegmentationMetrics:
    """The confusion matrix of the images seen so far: rows true classes, columns predicted ones.

    miou: mean over classes of intersection over union, in percent; of those that are in labels or predictions. macc:
    mean over classes that are in the labels of the fraction of their pixels that is right. aacc: fraction of all
    pixels that is right. Pixels without a label count nowhere.
    """

    TITLES: Mapping[str, str] = {"miou": "mIoU %", "macc": "mAcc %", "aacc": "aAcc %"}

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names: list[str] = list(class_names)
        n = len(self.class_names)
        self.confusion: Tensor = torch.zeros((n, n), dtype=torch.int64)
        self.images: int = 0
        self.not_finite: int = 0

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
            predicted = predicted_labels(logits, labels.shape)
            self.confusion += confusion_of(predicted, labels, len(self.confusion)).cpu()

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


def predicted_labels(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The class of every pixel (height, width), of logits or probabilities (C, h, w) of any size.

    Some classes are resized at a time: all of a large image would take gigabytes."""
    if tuple(logits.shape[1:]) == tuple(size):
        return logits.argmax(0)
    labels = torch.zeros(tuple(size), dtype=torch.int64, device=logits.device)
    best = torch.full(tuple(size), -torch.inf, device=logits.device)
    for first in range(0, len(logits), _CLASSES):
        part = resize_to(logits[None, first : first + _CLASSES].float(), size)[0]
        value, index = part.max(0)
        better = value > best
        labels[better], best[better] = index[better] + first, value[better]
    return labels


def confusion_of(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """(n, n) counts of pixels by true class and predicted class."""
    there = labels != IGNORED
    pairs = labels[there] * n_classes + predicted[there]
    return torch.bincount(pairs, minlength=n_classes**2).view(n_classes, n_classes)


class LabelMaps:
    """The predicted label map of every image, as run lengths, by the image's index in the data.

    entries: size [height, width], and labels, pairs of a label and how many pixels have it, row after row.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._runs: dict[int, tuple[list[int], np.ndarray]] = {}

    def update(self, output: Tensor | list[Tensor], batch: Batch) -> None:
        """Add a batch, as `SegmentationMetrics.update` does."""
        targets: Any = batch.targets
        for logits, target in zip(output, targets, strict=True):
            labels = target["labels"] if isinstance(target, dict) else target
            index, self._seen = self._seen, self._seen + 1
            if not (labels == IGNORED).all() and logits.isfinite().all():
                self._runs[index] = list(labels.shape), runs(predicted_labels(logits, labels.shape))

    @property
    def entries(self) -> dict[int, dict[str, Any]]:
        return {i: {"size": size, "labels": found.tolist()} for i, (size, found) in self._runs.items()}


def runs(labels: Tensor) -> np.ndarray:
    """A label map as run lengths: (n, 2), of a label and how many pixels have it, row after row."""
    flat = labels.flatten().long().cpu().numpy()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))
    return np.stack([flat[starts], np.diff(starts, append=len(flat))], axis=1)


class WorstImages:
    """The images with the lowest mean IoU, and what was predicted of them: `count` are in memory.

    entries: (mean IoU from 0 to 1, index of the image in the data, predicted labels (H, W) uint8), worst first. Images
    without a label do not count.
    """

    def __init__(self, count: int) -> None:
        self._count, self._seen = count, 0
        self.entries: list[tuple[float, int, Tensor]] = []

    def update(self, output: Tensor | list[Tensor], batch: Batch) -> None:
        """Add a batch, as `SegmentationMetrics.update` does."""
        targets: Any = batch.targets
        for logits, target in zip(output, targets, strict=True):
            labels = target["labels"] if isinstance(target, dict) else target
            position, self._seen = self._seen, self._seen + 1
            if (labels == IGNORED).all() or not logits.isfinite().all():
                continue
            predicted = predicted_labels(logits, labels.shape)
            one = SegmentationMetrics([""] * len(logits))
            one.confusion += confusion_of(predicted, labels, len(logits)).cpu()
            iou = one.per_class()[0].nanmean().item()
            self.entries.append((iou, position, predicted.to(torch.uint8).cpu()))
        self.entries = sorted(self.entries, key=lambda entry: entry[:2])[: self._count]


def labelled(model: LoadedModel, request: Request) -> Labelled:
    """Images with masks for a segmentor, by the names of its classes.

    Raises DataError where there are none, or where the classes are others.
    """
    channels = model.data_config["input_size"][0]

    def opened(classes: Sequence[str] | None) -> MaskSource:
        return open_masks(
            request.root,
            request.split,
            class_file=request.class_map,
            class_names=model.class_names,
            channels=channels,
            limit=request.limit,
            reduce_zero_label=model.data_config.get("reduce_zero_label", False),
            classes=classes,
        )

    source = opened(None)
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
        names = list(model.class_names)
        source = opened(names)
    else:
        source.check_classes(model.num_classes)

    def config(size: int | None) -> dict[str, Any]:
        """With another short side, and the long side that belongs to it."""
        if size is None:
            return model.data_config
        _, short, long = model.data_config["input_size"]
        return model.data_config | {"input_size": [channels, size, round(size * long / short)]}

    return Labelled(
        source=source,
        transform=lambda size: Resize(config(size)),
        metrics=lambda: SegmentationMetrics(names),
        collate=collate,
        augmented=test_time(model.network, model.data_config),
        batch_size=1,
    )
