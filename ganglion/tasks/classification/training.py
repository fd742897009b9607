"""Image classification: any timm network, trained with mixing of images, evaluated by top-1 and top-5."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.models import get_model_args
from torch import Tensor, nn

from ...config import check_literals, check_range
from ...data import (
    Batch,
)
from ...errors import unknown
from ...models import load_checkpoint
from ...training.errors import TrainingError
from ...training.optimization import OptimizerConfig, ScheduleConfig
from ...training.summary import parameters_line
from ...training.task import Task
from .data import ClassificationData
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
        initial_checkpoint: begin with the weights of this file: a published checkpoint, or an exported
            model.safetensors. A classifier of another number of classes is left out.
        new_classifier: leave out the file's classifier also where it has as many classes.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block. null: the network's own.
        model_args: further arguments of the network, e.g. {scan: bidi}.
        mixing: mixup and CutMix.
        label_smoothing: fraction of the label that goes to all classes alike.
        class_weights: weight of every class in the loss, or "balanced": in inverse proportion to its number of training
            images, 1 on average over the images. null: all 1.
        optimizer: see `optimizer`.
        schedule: see `schedule`.
        seed: see `seed_everything`.
        grad_checkpointing: recompute blocks in the backward pass instead of keeping their activations.
        channels_last: keep images and weights in channels-last memory.
        compile: torch.compile the network.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int | None = None,
        in_chans: int = 3,
        pretrained: bool = False,
        initial_checkpoint: str | None = None,
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
        self.name: str = name
        self.num_classes = num_classes
        self.in_chans: int = in_chans
        self.pretrained: bool = pretrained
        self.initial_checkpoint: str | None = initial_checkpoint
        self.new_classifier = new_classifier
        self.model_args: dict[str, Any] = dict(model_args or {})
        if drop_rate:
            self.model_args["drop_rate"] = drop_rate
        if drop_path_rate is not None:
            self.model_args["drop_path_rate"] = drop_path_rate
        self.mixing: MixingConfig = mixing
        self.label_smoothing: float = label_smoothing
        self.balanced: bool = class_weights == "balanced"
        weights_C = None
        if isinstance(class_weights, list):
            check_range("model.class_weights", class_weights, 0)
            if not any(class_weights):
                raise ValueError(f"model.class_weights is {class_weights}: expected one above 0")
            weights_C = torch.tensor(class_weights)
        self.class_weights: torch.Tensor | None
        self.register_buffer("class_weights", weights_C, persistent=False)
        self._mix: Mixup | None = None

    @property
    def data(self) -> ClassificationData:
        data = super().data
        assert isinstance(data, ClassificationData)
        return data

    def metrics(self) -> Counts:
        return Counts()

    def describe(self) -> str:
        return f"{self.name}, {parameters_line(self.network)}, {self.num_classes} classes"

    def build(self) -> nn.Module:
        if self.has_data or self.balanced:
            self._agree_with(self.data)
        if not self.num_classes:
            raise TrainingError("the data do not say how many classes they have: set model.num_classes")
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
            self.note(
                f"note: {self.name} begins with random weights: model.pretrained true takes those of the folder"
            )
        if self.initial_checkpoint is not None:
            self._load(network, self.initial_checkpoint)
        return network

    def _agree_with(self, data: ClassificationData) -> None:
        """All that task and data must agree on, in one place; takes from the data what the recipe leaves to them."""
        if self.num_classes is None:
            self.num_classes = data.num_classes
        if self.num_classes:
            for part in data.parts:
                data.source(part).check_classes(self.num_classes)
            if 0 < data.num_classes < self.num_classes:
                self.note(
                    f"note: model.num_classes is {self.num_classes}, and the data have {data.num_classes} classes"
                )
            if self.balanced:
                self.class_weights = balanced_weights(data.source("train").labels(), self.num_classes)
        if self.mixing.active and data.batch_size % 2:
            raise TrainingError(
                f"data.batch_size is {data.batch_size}: mixing pairs images, expected an even number"
            )

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
                    "model.initial_checkpoint FILE"
                ) from error
            field = "model.model_args" if self.model_args else "model.name"
            raise TrainingError(f"{field}: {line}") from error

    def _load(self, network: nn.Module, file: str) -> None:
        timm_network: Any = network
        classifier = timm_network.get_classifier()
        fresh = copy.deepcopy(classifier.state_dict())
        report = load_checkpoint(network, file, strict=False)
        if not report.all_but_classifier:
            raise TrainingError(
                f"model.initial_checkpoint {file!r} is not of {self.name}: expected a file that differs in its "
                f"classifier, input channels or size of position embeddings at most.\n  {report}"
            )
        if self.new_classifier:
            classifier.load_state_dict(fresh)
        self.note(
            f"{file}: {report}" + ("\n  the classifier is re-initialised" if self.new_classifier else "")
        )

    def description(self) -> dict[str, Any]:
        network: Any = self.network
        name, args = self.name, self.model_args | {"in_chans": self.in_chans}
        if name.startswith(("local-dir:", "hf-hub:")):  # what it names may be gone, or changed, by then
            name = network.pretrained_cfg["architecture"]
            args = get_model_args(network, args)
            args.pop("num_classes", None)
        return {
            "model": name,
            "model_args": args,
            "num_classes": self.num_classes,
            "data_config": self.data.data_config(network),
            "class_names": self.data.class_names,
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
        assert isinstance(targets, Tensor)
        smoothing = self.label_smoothing
        if self._mix is not None and (self.mixing.off_epoch is None or self.epoch < self.mixing.off_epoch):
            images, targets = self._mix(images, targets)
            smoothing = 0.0  # already in the mixed targets
        logits = self(images)
        return F.cross_entropy(logits.float(), targets, weight=self.class_weights, label_smoothing=smoothing)


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


#: What `ganglion fit` trains, and on what.
TASK = Classification
DATA = ClassificationData
