"""Images with label maps, to be trained on."""

from __future__ import annotations

import shlex
from typing import Any

from ...config import check_range
from ...data import Transform
from ...data.masks import MaskSource
from ...training.data import PartName, TaskData
from ...training.summary import split_line
from ..pixels import normalisation
from .folders import open_masks
from .transforms import Augment, Resize, SegmentationAugmentation, collate


class SegmentationData(TaskData):
    """Images with a class for every pixel.

    Args:
        root: folder with images/SPLIT and annotations/SPLIT (or masks/SPLIT, labels/SPLIT), whose files have the same
            names, and classes.txt with a class name a line.
        train_split: name of the training images' split.
        val_split: name of the validation images' split. null: no validation.
        train_images: folder of the training images below `root`, where it is called otherwise.
        train_masks: likewise, of their masks.
        val_images: likewise, of the validation images.
        val_masks: likewise, of their masks.
        class_file: file of the classes below `root`: a name a line, with three numbers after it where masks are images
            of colours; or JSON.
        classes: train on these classes only, in this order; pixels of others count nowhere. null: all.
        reduce_zero_label: label 0 counts nowhere and 1 is the first class, as in ADE20K.
        batch_size: images per device and forward pass.
        val_batch_size: images that are read at a time in validation.
        workers: processes per device that read and augment. 0: the main process does.
        long_side: images are resized to fit this and `short_side`, their ratio kept.
        short_side: likewise.
        multiple: in evaluation sides are then rounded up to a multiple of this (SparX: 32).
        mean: of every channel, of images from 0 to 1.
        std: likewise.
        augmentation: of training images.
        train_limit: use the first N training images only.
        val_limit: use the first N validation images only.
        max_unreadable: fraction of unreadable images, of those in a split, above which the run stops.
        seed: see `seed_everything`.
    """

    def __init__(
        self,
        root: str,
        *,
        train_split: str = "train",
        val_split: str | None = "val",
        train_images: str | None = None,
        train_masks: str | None = None,
        val_images: str | None = None,
        val_masks: str | None = None,
        class_file: str | None = None,
        classes: list[str] | None = None,
        reduce_zero_label: bool = False,
        batch_size: int = 4,
        val_batch_size: int | None = None,
        workers: int = 4,
        long_side: int = 2048,
        short_side: int = 512,
        multiple: int = 1,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augmentation: SegmentationAugmentation = SegmentationAugmentation(),  # noqa: B008  frozen
        train_limit: int | None = None,
        val_limit: int | None = None,
        max_unreadable: float = 0.01,
        seed: int = 0,
    ):
        super().__init__(
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            workers=workers,
            max_unreadable=max_unreadable,
            seed=seed,
        )
        check_range("data.short_side", short_side, 1)
        check_range("data.long_side", long_side, short_side)
        check_range("data.multiple", multiple, 1)
        check_range("data.train_limit", train_limit, 1)
        check_range("data.val_limit", val_limit, 1)
        check_range("data.mean", mean, 0, 1)
        check_range("data.std", std, above=0, high=1)
        self.root: str = root
        self.class_file: str | None = class_file
        self.classes: list[str] | None = classes
        self.reduce_zero_label: bool = reduce_zero_label
        self.splits: dict[str, str | None] = {"train": train_split, "val": val_split}
        self.images: dict[str, str | None] = {"train": train_images, "val": val_images}
        self.masks: dict[str, str | None] = {"train": train_masks, "val": val_masks}
        self.limits: dict[str, int | None] = {"train": train_limit, "val": val_limit}
        self.sides: tuple[int, int] = (short_side, long_side)
        self.multiple: int = multiple
        self.augmentation: SegmentationAugmentation = augmentation
        self.mean: list[float] | None = mean
        self.std: list[float] | None = std
        if val_split is None and val_images is None:
            self.parts: tuple[PartName, ...] = ("train",)

    def describe(self) -> list[tuple[str, str]]:
        short, long = self.sides
        lines = {
            part: split_line(self.source(part), self.images[part] or str(self.splits[part]))
            for part in self.parts
        }
        crop = " x ".join(map(str, reversed(self.augmentation.crop_size)))
        return [
            (
                "images",
                f"within {long} x {short} pixels, crops of {crop}, {self.task.in_chans} channels; {self.root}",
            ),
            ("training", lines["train"]),
            ("validation", lines.get("val", "none")),
        ]

    def validate_options(self) -> str | None:
        if "val" not in self.parts or self.images["val"] or self.masks["val"]:
            return None
        return f"--data {shlex.quote(self.root)} --split {shlex.quote(str(self.splits['val']))}"

    def open(self, part: PartName) -> MaskSource:
        return open_masks(
            self.root,
            str(self.splits[part]),
            images=self.images[part],
            masks=self.masks[part],
            class_file=self.class_file,
            channels=self.task.in_chans,
            reduce_zero_label=self.reduce_zero_label,
            classes=self.classes,
            limit=self.limits[part],
        )

    def transform(self, part: PartName) -> Transform:
        config = self.data_config(self.task.in_chans)
        return Augment(config, self.augmentation) if part == "train" else Resize(config)

    collate = staticmethod(collate)

    def data_config(self, channels: int) -> dict[str, Any]:
        """What images have to be like: input_size is channels, short and long side.

        Raises ValueError for a mean or std that has neither one value nor one for every channel.
        """
        return {
            "input_size": [channels, *self.sides],
            "multiple": self.multiple,
            "reduce_zero_label": self.reduce_zero_label,
        } | normalisation(self.mean, self.std, channels)
