"""Images with labels, to be trained on."""

from __future__ import annotations

import shlex
from typing import Any

from timm.data import resolve_data_config
from torch import nn

from ...config import check_range
from ...data import (
    Augmentation,
    DataError,
    ImageSource,
    MissingSplit,
    Transform,
    eval_transform,
    open_dataset,
    per_channel,
    split_off,
    train_transform,
)
from ...training.data import PartName, TaskData
from ...training.summary import split_line

#: What `ganglion validate` reads where it is not told.
_OWN_SPLIT = ("--split", "validation")


class ClassificationData(TaskData):
    """Images with labels: which are trained on, which measured on, and how they are read.

    Args:
        root: folder of class folders (below a folder for each split), a tar file, shards, or npz arrays.
        reader: how it is read: "" for folders and tar files, "wds/...", "hfds/...", "hfids/...", "torch/...".
        train_split: name of the training images' split.
        val_split: name of the validation images' split, or the fraction of the training images that is set aside for
            validation, e.g. 0.1: drawn by `seed_everything`, class by class. null: no validation.
        val_labels: file of the validation images' classes, where they lie in no class folders.
        batch_size: images per device and forward pass.
        val_batch_size: likewise, in validation. null: batch_size.
        workers: processes per device that read and augment. 0: the main process does.
        img_size: side of the images in pixels. null: the network's own.
        crop_pct: evaluation resizes to img_size / crop_pct and cuts the centre out. null: the network's own.
        mean: of every channel, of images from 0 to 1. null: the network's own.
        std: likewise.
        augmentation: of training images.
        train_limit: use the first N training images only.
        val_limit: use the first N validation images only.
        num_samples: training images of a stream whose length is unknown.
        class_map: file of the class names in the order of their numbers, text or JSON. null: sorted.
        max_unreadable: fraction of unreadable images, of those in a split, above which the run stops.
        seed: see `seed_everything`.
    """

    def __init__(
        self,
        root: str,
        *,
        reader: str = "",
        train_split: str = "train",
        val_split: str | float | None = "validation",
        val_labels: str | None = None,
        batch_size: int = 128,
        val_batch_size: int | None = None,
        workers: int = 4,
        img_size: int | None = None,
        crop_pct: float | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008  frozen
        train_limit: int | None = None,
        val_limit: int | None = None,
        num_samples: int | None = None,
        class_map: str | None = None,
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
        for field, value in (
            ("img_size", img_size),
            ("train_limit", train_limit),
            ("val_limit", val_limit),
            ("num_samples", num_samples),
        ):
            check_range(f"data.{field}", value, 1)
        check_range("data.crop_pct", crop_pct, above=0, high=1)
        check_range("data.mean", mean, 0, 1)
        check_range("data.std", std, above=0, high=1)
        self.val_fraction: float | None = _fraction(val_split)
        if root.endswith((".tar", ".npz")) and val_split is not None and self.val_fraction is None:
            raise ValueError(
                f"data.root {root} is one file, of one split: expected a folder with both {train_split} and "
                f"{val_split}, or for data.val_split null or a fraction, such as 0.1"
            )
        if val_labels is not None and (val_split is None or self.val_fraction is not None):
            raise ValueError(f"data.val_labels {val_labels}: expected a data.val_split with these images")
        self.root: str = root
        self.reader: str = reader
        self.class_map: str | None = class_map
        self.val_labels: str | None = val_labels
        self.splits: dict[str, str | None] = {
            "train": train_split,
            "val": None if val_split is None else str(val_split),
        }
        self.limits: dict[str, int | None] = {"train": train_limit, "val": val_limit}
        self.num_samples: int | None = num_samples
        self.augmentation: Augmentation = augmentation
        self.img_size: int | None = img_size
        self.crop_pct: float | None = crop_pct
        self.mean: list[float] | None = mean
        self.std: list[float] | None = std
        self._divided: dict[PartName, ImageSource] = {}
        if val_split is None:
            self.parts: tuple[PartName, ...] = ("train",)

    def describe(self) -> list[tuple[str, str]]:
        channels, height, width = self.data_config(self.task.network)["input_size"]
        train, val = str(self.splits["train"]), str(self.splits["val"])
        where = val if self.val_fraction is None else f"{val} of {train}"
        validation = split_line(self.source("val"), where) if "val" in self.parts else "none"
        return [
            ("images", f"{height} x {width} pixels, {channels} channels; {self.root}"),
            ("training", split_line(self.source("train"), train)),
            ("validation", validation),
        ]

    def validate_options(self) -> str | None:
        split = self.splits["val"]
        if split is None or self.val_fraction is not None or self.val_labels is not None:
            return None
        named = {"--data": self.root, "--split": split, "--data-reader": self.reader}
        given = {name: value for name, value in named.items() if value and (name, value) != _OWN_SPLIT}
        return " ".join(f"{name} {shlex.quote(value)}" for name, value in given.items())

    def open(self, part: PartName) -> ImageSource:
        if self.val_fraction is None:
            return self._open(part)
        if not self._divided:
            train, val = split_off(self._open("train"), self.val_fraction, self.seed)
            val.note = ""  # the same files'
            self._divided = {"train": train, "val": val.first(self.limits["val"])}
        return self._divided[part]

    def _open(self, part: PartName) -> ImageSource:
        split = self.splits[part]
        assert split is not None
        class_map: Any = self.class_map
        if part == "val" and class_map is None and (names := self.class_names):
            # A class without validation images must not renumber those after it.
            class_map = {name: label for label, name in enumerate(names)}
        try:
            source = open_dataset(
                self.root,
                split=split,
                or_root=part == "train" and (self.val_fraction is not None or self.splits["val"] is None),
                reader=self.reader,
                channels=self.task.in_chans,
                training=part == "train",
                class_map=class_map,
                labels=self.val_labels if part == "val" else None,
                limit=self.limits[part],
                num_samples=self.num_samples if part == "train" else None,
            )
        except MissingSplit as error:
            hint = {
                "train": "; class folders without splits are read with data.val_split 0.1 or null",
                "val": ", or data.val_split 0.1, which sets a tenth of the training images aside",
            }
            raise DataError(f"{error} Expected one of them as data.{part}_split{hint[part]}") from error
        if part == "train" and source.num_classes == 1:
            only = f", {source.class_names[0]!r}" if source.class_names else ""
            raise DataError(
                f"the training images are of one class{only}: expected a folder for each of several"
            )
        return source

    @property
    def num_classes(self) -> int:
        return self.source("train").num_classes

    @property
    def class_names(self) -> list[str] | None:
        return self.source("train").class_names

    def transform(self, part: PartName) -> Transform:
        config = self.data_config(self.task.network)
        return train_transform(self.augmentation, config) if part == "train" else eval_transform(config)

    def data_config(self, network: nn.Module) -> dict[str, Any]:
        """The network's preprocessing in timm's terms, with this data's own settings.

        Raises ValueError for a mean or std that has neither one value nor one for every channel.
        """
        timm_network: Any = network
        channels: int = timm_network.in_chans
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, channels):
                raise ValueError(f"data.{name} has {len(values)} values: expected 1 or {channels}")
        args: dict[str, Any] = {"crop_pct": self.crop_pct, "mean": self.mean, "std": self.std}
        args["in_chans"] = channels
        if self.img_size is not None:
            args["img_size"] = self.img_size
        config = resolve_data_config({k: v for k, v in args.items() if v is not None}, model=network)
        for name in ("mean", "std"):
            config[name] = per_channel(config[name], channels)
        return config


def _fraction(val_split: str | float | None) -> float | None:
    """The fraction that is to be set aside; None where `val_split` is a name, such as 2017."""
    if val_split is None or (isinstance(val_split, str) and val_split.isdecimal()):
        return None
    try:
        fraction = float(val_split)
    except ValueError:
        return None
    check_range("data.val_split", fraction, above=0, below=1)
    return fraction
