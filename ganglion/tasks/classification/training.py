"""Image classification: any timm network, trained with mixing of images, evaluated by top-1 and top-5."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup, resolve_data_config
from timm.models import get_model_args
from torch import Tensor, nn

from ...config import check_literals, check_range
from ...data import (
    Augmentation,
    Batch,
    DataError,
    ImageSource,
    Loader,
    MissingSplit,
    eval_loader,
    eval_transform,
    open_dataset,
    per_channel,
    split_off,
    train_loader,
    train_transform,
)
from ...errors import unknown
from ...models import load_checkpoint
from ...training.optimization import OptimizerConfig, ScheduleConfig
from ...training.summary import split_line
from ...training.task import Task, TrainingError
from .metrics import Counts


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Mixup and CutMix over a batch, as timm does them.

    Args:
        mixup: alpha of mixup's beta distribution. 0: none.
        cutmix: alpha of CutMix's. 0: none.
        prob: probability of mixing at all.
        switch_prob: probability of CutMix where both are on.
        mode: one draw per batch, per pair of images, or per image.
        off_epoch: mix no more from this epoch on. null: to the end.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"
    off_epoch: int | None = None

    def __post_init__(self) -> None:
        check_literals(self)
        check_range("model.mixing.mixup", self.mixup, 0)
        check_range("model.mixing.cutmix", self.cutmix, 0)
        check_range("model.mixing.prob", self.prob, 0, 1)
        check_range("model.mixing.switch_prob", self.switch_prob, 0, 1)
        check_range("model.mixing.off_epoch", self.off_epoch, 0)

    @property
    def active(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


class Classification(Task):
    """A timm network and its loss.

    Args:
        name: a network of this library or of timm, or `local-dir:FOLDER` of an exported one.
        num_classes: classes. null: those of the data.
        in_chans: channels of the images.
        pretrained: begin with the network's published weights (downloaded if they are not on this machine).
        weights: begin with the weights of this file: a published checkpoint, or an exported model.safetensors. A
            classifier of another number of classes is left out.
        new_classifier: leave out the file's classifier also where it has as many classes.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block. null: the network's own.
        model_args: further arguments of the network, e.g. {scan: bidi}.
        mixing: mixup and CutMix.
        label_smoothing: share of the label that goes to all classes alike.
        class_weights: weight of every class in the loss, or "balanced": in inverse proportion to its number of training
            images, 1 on average over the images. null: all 1.
        optimizer: see `optimizer`.
        schedule: see `schedule`.
        seed: see `seed_everything`.
        grad_checkpointing: recompute blocks in the backward pass instead of keeping their activations.
        channels_last: keep images and weights in channels-last memory.
        compile: torch.compile the network.
    """

    METRICS = ("val/loss", "val/top1", "val/top5")

    def __init__(
        self,
        name: str,
        *,
        num_classes: int | None = None,
        in_chans: int = 3,
        pretrained: bool = False,
        weights: str | None = None,
        new_classifier: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        model_args: dict[str, Any] | None = None,
        mixing: MixingConfig = MixingConfig(),
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        seed: int = 0,
        grad_checkpointing: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ):
        super().__init__(
            optimizer=optimizer,
            schedule=schedule,
            seed=seed,
            grad_checkpointing=grad_checkpointing,
            channels_last=channels_last,
            compile=compile,
        )
        if not name.startswith(("local-dir:", "hf-hub:")) and not timm.is_model(name):
            raise ValueError("model.name: " + unknown("model", name, timm.list_models()))
        check_range("model.num_classes", num_classes, 1)
        check_range("model.in_chans", in_chans, 1)
        check_range("model.drop_rate", drop_rate, 0, below=1)
        check_range("model.drop_path_rate", drop_path_rate, 0, below=1)
        check_range("model.label_smoothing", label_smoothing, 0, 1)
        self.name, self.num_classes, self.in_chans = name, num_classes, in_chans
        self.pretrained, self.weights, self.new_classifier = pretrained, weights, new_classifier
        self.model_args = dict(model_args or {})
        if drop_rate:
            self.model_args["drop_rate"] = drop_rate
        if drop_path_rate is not None:
            self.model_args["drop_path_rate"] = drop_path_rate
        self.mixing, self.label_smoothing = mixing, label_smoothing
        self.balanced = class_weights == "balanced"
        weights_C = None
        if isinstance(class_weights, list):
            check_range("model.class_weights", class_weights, 0)
            if not any(class_weights):
                raise ValueError(f"model.class_weights is {class_weights}: expected one above 0")
            weights_C = torch.tensor(class_weights)
        self.class_weights: torch.Tensor | None
        self.register_buffer("class_weights", weights_C, persistent=False)
        self._mix: Mixup | None = None
        self._counts = Counts()

    def build(self) -> nn.Module:
        data: ClassificationData = self.trainer.datamodule  # pyright: ignore
        if self.num_classes is None:
            self.num_classes = data.num_classes
        if not self.num_classes:
            raise TrainingError("the data do not say how many classes they have: set model.num_classes")
        for part in data.parts:
            data.source(part).check_classes(self.num_classes)
        if 0 < data.num_classes < self.num_classes:
            self.print(
                f"note: model.num_classes is {self.num_classes}, and the data have {data.num_classes} classes"
            )
        if self.balanced:
            self.class_weights = balanced_weights(data.source("train").labels(), self.num_classes)
        if self.class_weights is not None and len(self.class_weights) != self.num_classes:
            raise ValueError(
                f"model.class_weights has {len(self.class_weights)} values: expected one for each of the "
                f"{self.num_classes} classes"
            )
        if self.mixing.active:
            self._mix = Mixup(
                mixup_alpha=self.mixing.mixup,
                cutmix_alpha=self.mixing.cutmix,
                prob=self.mixing.prob,
                switch_prob=self.mixing.switch_prob,
                mode=self.mixing.mode,
                label_smoothing=self.label_smoothing,
                num_classes=self.num_classes,
            )
        network = self._create()
        if self.name.startswith("local-dir:") and not self.pretrained:
            self.print(
                f"note: {self.name} begins with random weights: model.pretrained true takes those of the folder"
            )
        if self.weights is not None:
            self._load(network, self.weights)
        return network

    def _create(self) -> nn.Module:
        """The network as timm makes it. Its errors are of any type: all of them come from the settings named here."""
        options = {"num_classes": self.num_classes, "in_chans": self.in_chans, **self.model_args}
        try:
            return timm.create_model(self.name, pretrained=self.pretrained, **options)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            line = str(error).partition("\n")[0]
            if isinstance(error, ValueError):
                raise
            if self.pretrained and not isinstance(error, TypeError):
                why = (
                    "there are none"
                    if "No pretrained weights" in line
                    else f"they cannot be had ({type(error).__name__}: {line})"
                )
                raise TrainingError(
                    f"model.pretrained asks for the published weights of {self.name}, and {why}. Expected false, or "
                    "model.weights FILE"
                ) from error
            field = "model.model_args" if self.model_args else "model.name"
            raise TrainingError(f"{field}: {line}") from error

    def _load(self, network: nn.Module, weights: str) -> None:
        classifier: Any = network.get_classifier()  # pyright: ignore
        fresh = copy.deepcopy(classifier.state_dict())
        report = load_checkpoint(network, weights, strict=False)
        if not report.all_but_classifier:
            raise TrainingError(
                f"model.weights {weights!r} is not of {self.name}: expected a file that differs in its classifier, "
                f"input channels or size of position embeddings at most.\n  {report}"
            )
        if self.new_classifier:
            classifier.load_state_dict(fresh)
        self.print(f"{weights}: {report}" + ("\n  the classifier begins anew" if self.new_classifier else ""))

    def description(self) -> dict[str, Any]:
        data: ClassificationData = self.trainer.datamodule  # pyright: ignore
        name, args = self.name, self.model_args | {"in_chans": self.in_chans}
        if name.startswith(("local-dir:", "hf-hub:")):  # what it names may be gone, or changed, by then
            name = self.network.pretrained_cfg["architecture"]  # pyright: ignore
            args = get_model_args(self.network, args)
            args.pop("num_classes", None)
        return {
            "model": name,
            "model_args": args,
            "num_classes": self.num_classes,
            "data_config": data.data_config(self.network),
            "class_names": data.class_names,
        }

    def check_continues(self, before: Mapping[str, Any]) -> None:
        found = self.description()
        names, known = before.get("class_names"), found["class_names"]
        if names is not None and names != known:
            raise TrainingError(f"the run was trained on other classes: {_differing_classes(names, known)}")
        for key in ("model", "model_args", "num_classes"):
            if before.get(key) != found[key]:
                raise TrainingError(f"the run's {key} is {before.get(key)!r}, and {found[key]!r} here")

    def loss(self, batch: Batch) -> Tensor:
        images, targets = batch.images, batch.targets
        smoothing = self.label_smoothing
        if self._mix is not None and (self.mixing.off_epoch is None or self.epoch < self.mixing.off_epoch):
            images, targets = self._mix(images, targets)
            smoothing = 0.0  # already in the mixed targets
        logits = self(images)
        return F.cross_entropy(logits.float(), targets, weight=self.class_weights, label_smoothing=smoothing)

    def on_validation_epoch_start(self) -> None:
        self._counts = Counts()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._counts.update(self(batch.images), batch.targets)

    def on_validation_epoch_end(self) -> None:
        counts = self._counts.reduce()
        found = {"val/top1": counts.top1, "val/top5": counts.top5, "val/loss": counts.loss}
        self.log_dict(found, rank_zero_only=False)


def _differing_classes(names: list[str], known: list[str] | None) -> str:
    if known is None:
        return f"they were {', '.join(map(repr, names[:3]))} ..., and these data do not name theirs"
    if len(names) != len(known):
        return f"{len(names)}, and these data have {len(known)}"
    i = next(i for i, (a, b) in enumerate(zip(names, known, strict=True)) if a != b)
    return f"number {i} was {names[i]!r}, and is {known[i]!r} in these data"


def balanced_weights(labels: Sequence[int], num_classes: int) -> Tensor:
    """Weights (num_classes,) float32 under which every class counts alike: images / (classes * images of the class).

    Raises ValueError for a class without images.
    """
    counts_C = torch.bincount(torch.tensor(labels), minlength=num_classes)
    if missing := (counts_C == 0).nonzero().flatten().tolist():
        raise ValueError(
            f"model.class_weights balanced: {len(missing)} of {num_classes} classes have no training image, such as "
            f"class {missing[0]}"
        )
    return len(labels) / (num_classes * counts_C.float())


class ClassificationData(pl.LightningDataModule):
    """Images with labels: which are trained on, which measured on, and how they are read.

    Args:
        root: folder of class folders (below a folder for each split), a tar file, shards, or npz arrays.
        name: how it is read: "" for folders and tar files, "wds/...", "hfds/...", "hfids/...", "torch/...".
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
        train_limit: use the first so many training images only.
        val_limit: use the first so many validation images only.
        num_samples: training images of a stream whose length is unknown.
        class_map: file of the class names in the order of their numbers, text or JSON. null: sorted.
        max_broken: share of broken images, of those in a split, above which the run stops.
        seed: see `seed_everything`.
    """

    def __init__(
        self,
        root: str,
        *,
        name: str = "",
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
        max_broken: float = 0.01,
        seed: int = 0,
    ):
        super().__init__()
        counts = {"batch_size": batch_size, "val_batch_size": val_batch_size, "img_size": img_size}
        counts |= {"train_limit": train_limit, "val_limit": val_limit, "num_samples": num_samples}
        for field, value in counts.items():
            check_range(f"data.{field}", value, 1)
        check_range("data.workers", workers, 0)
        check_range("data.crop_pct", crop_pct, above=0, high=1)
        check_range("data.mean", mean, 0, 1)
        check_range("data.std", std, above=0, high=1)
        check_range("data.max_broken", max_broken, 0, 1)
        check_range("seed_everything", seed, 0)
        self.val_fraction = _fraction(val_split)
        if root.endswith((".tar", ".npz")) and val_split is not None and self.val_fraction is None:
            raise ValueError(
                f"data.root {root} is one file, of one split: expected a folder with both {train_split} and "
                f"{val_split}, or for data.val_split null or a fraction, such as 0.1"
            )
        if val_labels is not None and (val_split is None or self.val_fraction is not None):
            raise ValueError(f"data.val_labels {val_labels}: expected a data.val_split with these images")
        self.root, self.reader, self.class_map, self.val_labels = root, name, class_map, val_labels
        self.splits = {"train": train_split, "val": None if val_split is None else str(val_split)}
        self.limits = {"train": train_limit, "val": val_limit}
        self.batch_size, self.val_batch_size = batch_size, val_batch_size or batch_size
        self.workers, self.num_samples, self.seed = workers, num_samples, seed
        self.img_size, self.crop_pct, self.mean, self.std = img_size, crop_pct, mean, std
        self.augmentation, self.max_broken = augmentation, max_broken
        self._sources: dict[str, ImageSource] = {}
        self._place: dict[str, int] | None = None

    @property
    def _run(self) -> Any:
        """The trainer, which there is as soon as anything is asked of the data."""
        return self.trainer

    @property
    def parts(self) -> tuple[Literal["train", "val"], ...]:
        return ("train",) if self.splits["val"] is None else ("train", "val")

    def setup(self, stage: str) -> None:
        for part in self.parts:
            if (note := self.source(part).note) and (part == "train" or self.val_fraction is None):
                self._run.lightning_module.print(f"{part}: {note}")
        if "val" not in self.parts:
            self._run.limit_val_batches = 0  # Lightning would warn of a loader without batches

    def describe(self) -> list[tuple[str, str]]:
        """What there is to train on and to validate with, as titles and lines."""
        task = self._run.lightning_module
        channels, height, width = self.data_config(task.network)["input_size"]
        train, val = str(self.splits["train"]), str(self.splits["val"])
        where = val if self.val_fraction is None else f"{val} of {train}"
        validation = split_line(self.source("val"), where) if "val" in self.parts else "none"
        return [
            ("images", f"{height} x {width} pixels, {channels} channels; {self.root}"),
            ("training", split_line(self.source("train"), train)),
            ("validation", validation),
        ]

    def source(self, part: Literal["train", "val"]) -> ImageSource:
        """The images of a part, opened at the first call. Raises DataError where there are none."""
        if part not in self._sources:
            if self.val_fraction is not None:
                train, val = split_off(self._open("train"), self.val_fraction, self.seed)
                self._sources = {"train": train, "val": val.first(self.limits["val"])}
            else:
                self._sources[part] = self._open(part)
        return self._sources[part]

    def _open(self, part: Literal["train", "val"]) -> ImageSource:
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
                name=self.reader,
                channels=self._run.lightning_module.in_chans,
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

    def data_config(self, network: nn.Module) -> dict[str, Any]:
        """The network's preprocessing in timm's terms, with this data's own settings.

        Raises ValueError for a mean or std that has neither one value nor one for every channel.
        """
        channels: int = network.in_chans  # pyright: ignore
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

    def _network(self) -> nn.Module:
        return self._run.lightning_module.network

    def train_dataloader(self) -> Loader:
        task = self._run.lightning_module
        if task.mixing.active and self.batch_size % 2:
            raise TrainingError(
                f"data.batch_size is {self.batch_size}: mixing pairs images, expected an even number"
            )
        progress = self._run.fit_loop.epoch_loop.batch_progress
        done = 0 if progress.is_last_batch else progress.current.ready
        return train_loader(
            self.source("train"),
            train_transform(self.augmentation, self.data_config(self._network())),
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=task.epoch,
            start_batch=done,
            rank=self._run.global_rank,
            world_size=self._run.world_size,
            num_workers=self.workers,
            pin_memory=self._run.strategy.root_device.type == "cuda",
        )

    def val_dataloader(self) -> Loader:
        return eval_loader(
            self.source("val"),
            eval_transform(self.data_config(self._network())),
            batch_size=self.val_batch_size,
            rank=self._run.global_rank,
            world_size=self._run.world_size,
            num_workers=self.workers,
            pin_memory=self._run.strategy.root_device.type == "cuda",
        )


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
