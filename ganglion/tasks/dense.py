"""What the training of detectors and segmentors shares: a network by name on a backbone, and where it begins."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar

import timm
from torch import nn

from ..config import check_range
from ..errors import unknown
from ..models import load_checkpoint
from ..training.errors import TrainingError
from ..training.summary import parameters_line
from ..training.task import Task


class DenseTask(Task):
    """A detector or segmentor; its arguments are described where they have defaults, in `Detection` and `Segmentation`.

    KIND: what it is called in messages. NAMES: those there are.

    Raises ValueError for an unknown network or backbone and for numbers out of range.
    """

    KIND: ClassVar[str]
    NAMES: ClassVar[Collection[str]]

    def __init__(
        self,
        backbone: str,
        *,
        name: str,
        num_classes: int | None,
        in_chans: int,
        pretrained: bool,
        initial_checkpoint: str | None,
        drop_path_rate: float | None,
        backbone_args: dict[str, Any] | None,
        config: dict[str, Any] | None,
        **options: Any,
    ):
        super().__init__(**options)
        if not timm.is_model(backbone):
            raise ValueError("model.backbone: " + unknown("network", backbone, timm.list_models()))
        if name not in self.NAMES:
            raise ValueError("model.name: " + unknown(self.KIND, name, self.NAMES))
        check_range("model.num_classes", num_classes, 1)
        check_range("model.in_chans", in_chans, 1)
        check_range("model.drop_path_rate", drop_path_rate, 0, below=1)
        self.name: str = name
        self.backbone: str = backbone
        self.num_classes: int | None = num_classes
        self.in_chans: int = in_chans
        self.pretrained: bool = pretrained
        self.initial_checkpoint: str | None = initial_checkpoint
        self.backbone_args: dict[str, Any] = dict(backbone_args or {})
        if in_chans != 3:
            self.backbone_args["in_chans"] = in_chans
        if drop_path_rate is not None:
            self.backbone_args["drop_path_rate"] = drop_path_rate
        self.config: dict[str, Any] = dict(config or {})

    @abstractmethod
    def create(self, num_classes: int) -> nn.Module:
        """The network; random, or with the weights of ImageNet in its backbone."""

    def describe(self) -> str:
        return f"{self.name} on {self.backbone}, {parameters_line(self.network)}, {self.num_classes} classes"

    def build(self) -> nn.Module:
        if self.has_data:
            if self.num_classes is None:
                self.num_classes = self.data.source("train").num_classes
            for part in self.data.parts:
                self.data.source(part).check_classes(self.num_classes)
        if not self.num_classes:
            raise TrainingError("without data the number of classes is unknown: set model.num_classes")
        network = self.create(self.num_classes)
        if self.initial_checkpoint is not None:
            self._load(network, self.initial_checkpoint)
        return network

    def _load(self, network: nn.Module, file: str) -> None:
        try:
            report = load_checkpoint(network, file)
        except ValueError as error:
            backbone: Any = network.backbone
            report = load_checkpoint(backbone.network, file, strict=False)
            # What a classifier does not have: the norms of four maps, and SparX's learned scales.
            own = ("out_norms.", "attention.scale")
            missing = [name for name in report.missing if not any(part in name for part in own)]
            if missing:
                raise TrainingError(
                    f"model.initial_checkpoint {file!r} is neither a {self.name} on {self.backbone} ({error}) nor a "
                    f"{self.backbone}: no {missing[0]}"
                ) from error
        self.note(f"{file}: {report}")

    def description(self) -> dict[str, Any]:
        data: Any = self.data
        return {
            "model": self.name,
            "backbone": self.backbone,
            "backbone_args": self.backbone_args,
            "config": self.config,
            "num_classes": self.num_classes,
            "data_config": data.data_config(self.in_chans),
            "class_names": list(self.data.source("train").class_names or []),
        }

    def forward(self, images: Any) -> Any:
        """What the network computes."""
        self.configure_model()
        return self.network(images)
