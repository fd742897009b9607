"""Images with objects in COCO's format, to be trained on."""

from __future__ import annotations

import shlex
from typing import Any

from ...config import check_range
from ...data import CocoSource, Transform
from ...training.data import PartName, TaskData
from ...training.summary import split_line
from ..pixels import normalisation
from .metrics import open_coco
from .transforms import Augment, DetectionAugmentation, Resize, collate


class DetectionData(TaskData):
    """Images with boxes and masks.

    Args:
        root: folder with annotations/instances_SPLIT.json and a folder of images for each split, as COCO has them.
        train_split: name of the training images' split.
        val_split: name of the validation images' split. null: no validation.
        train_annotations: JSON file of the training images below `root`, where it is called otherwise.
        val_annotations: likewise, of the validation images.
        train_images: folder of the training images below `root`, where it is called otherwise.
        val_images: likewise, of the validation images.
        classes: train on these classes only, in this order. null: all, in the order of their ids.
        batch_size: images per device and forward pass.
        val_batch_size: images that are read at a time in validation; the network takes them one by one.
        workers: processes per device that read and augment. 0: the main process does.
        long_side: images are resized to fit this and `short_side`, their ratio kept.
        short_side: likewise.
        mean: of every channel, of images from 0 to 1.
        std: likewise.
        augmentation: of training images.
        group_by_orientation: a device's batch holds images that are wider than high, or images that are not, as
            published: less padding.
        train_limit: use the first N training images only.
        val_limit: use the first N validation images only.
        max_unreadable: fraction of unreadable images, of those in a split, above which the run stops.
        seed: see `seed_everything`.
    """

    def __init__(
        self,
        root: str,
        *,
        train_split: str = "train2017",
        val_split: str | None = "val2017",
        train_annotations: str | None = None,
        val_annotations: str | None = None,
        train_images: str | None = None,
        val_images: str | None = None,
        classes: list[str] | None = None,
        batch_size: int = 2,
        val_batch_size: int | None = None,
        workers: int = 4,
        long_side: int = 1333,
        short_side: int = 800,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augmentation: DetectionAugmentation = DetectionAugmentation(),  # noqa: B008  frozen
        group_by_orientation: bool = True,
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
        check_range("data.train_limit", train_limit, 1)
        check_range("data.val_limit", val_limit, 1)
        check_range("data.mean", mean, 0, 1)
        check_range("data.std", std, above=0, high=1)
        if classes is not None and (not classes or len(set(classes)) != len(classes)):
            raise ValueError(f"data.classes is {classes}: expected names, each once")
        self.root: str = root
        self.classes: list[str] | None = classes
        self.splits: dict[str, str | None] = {"train": train_split, "val": val_split}
        self.annotations: dict[str, str | None] = {"train": train_annotations, "val": val_annotations}
        self.images: dict[str, str | None] = {"train": train_images, "val": val_images}
        self.limits: dict[str, int | None] = {"train": train_limit, "val": val_limit}
        self.sides: tuple[int, int] = (short_side, long_side)
        self.augmentation: DetectionAugmentation = augmentation
        self.mean: list[float] | None = mean
        self.std: list[float] | None = std
        self.group_by_orientation: bool = group_by_orientation
        if val_split is None and val_annotations is None:
            self.parts: tuple[PartName, ...] = ("train",)

    def describe(self) -> list[tuple[str, str]]:
        short, long = self.sides
        lines = {
            part: split_line(self.source(part), self.annotations[part] or str(self.splits[part]))
            for part in self.parts
        }
        return [
            ("images", f"within {long} x {short} pixels, {self.task.in_chans} channels; {self.root}"),
            ("training", lines["train"]),
            ("validation", lines.get("val", "none")),
        ]

    def validate_options(self) -> str | None:
        if "val" not in self.parts or self.annotations["val"] or self.images["val"]:
            return None
        return f"--data {shlex.quote(self.root)} --split {shlex.quote(str(self.splits['val']))}"

    def open(self, part: PartName) -> CocoSource:
        # Of training the names count: a class without validation images must not renumber those after it.
        classes = self.classes if part == "train" else self.source("train").class_names
        return open_coco(
            self.root,
            str(self.splits[part]),
            annotations=self.annotations[part],
            images=self.images[part],
            channels=self.task.in_chans,
            training=part == "train",
            classes=classes,
            limit=self.limits[part],
        )

    @property
    def coco(self) -> CocoSource:
        """The training images."""
        source = self.source("train")
        assert isinstance(source, CocoSource)
        return source

    def groups(self) -> list[int] | None:
        if not self.group_by_orientation:
            return None
        return [int(width > height) for height, width in (item["size"] for item in self.coco.targets())]

    def transform(self, part: PartName) -> Transform:
        config = self.data_config(self.task.in_chans)
        return Augment(config, self.augmentation) if part == "train" else Resize(config)

    collate = staticmethod(collate)

    def data_config(self, channels: int) -> dict[str, Any]:
        """What images have to be like: input_size is channels, short and long side.

        Raises ValueError for a mean or std that has neither one value nor one for every channel.
        """
        return {"input_size": [channels, *self.sides]} | normalisation(self.mean, self.std, channels)
