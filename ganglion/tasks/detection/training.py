"""Object detection with masks: Mask R-CNN on any network with four maps, measured by COCO's average precision."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from ...config import check_range
from ...data import Batch
from ...errors import unknown
from ...heads import DETECTORS, create_detector
from ...models import load_checkpoint
from ...training.errors import TrainingError
from ...training.optimization import OptimizerConfig, ScheduleConfig
from ...training.summary import parameters_line
from ...training.task import Task
from .data import DetectionData
from .metrics import CocoMetrics


class Detection(Task):
    """A detector and its losses.

    Args:
        backbone: a network of this library or of timm.
        name: the detector.
        num_classes: classes. null: those of the data.
        in_chans: channels of the images.
        pretrained: the backbone begins with its published classifier's weights.
        initial_checkpoint: begin with the weights of this file: a published detector of as many classes, or a
            classifier, whose weights the backbone takes.
        drop_path_rate: stochastic depth of the last block. null: the network's own.
        backbone_args: further arguments of the backbone.
        config: fields of the detector's configuration, e.g. {proposals: 500}.
        optimizer: see `optimizer`.
        schedule: see `schedule`.
        seed: see `seed_everything`.
        grad_checkpointing: recompute blocks of the backbone in the backward pass.
        compile: torch.compile backbone, neck and RPN.
    """

    def __init__(
        self,
        backbone: str,
        *,
        name: str = "mask_rcnn",
        num_classes: int | None = None,
        in_chans: int = 3,
        pretrained: bool = False,
        initial_checkpoint: str | None = None,
        drop_path_rate: float | None = None,
        backbone_args: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008  frozen
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        seed: int = 0,
        grad_checkpointing: bool = False,
        compile: bool = False,
    ):
        super().__init__(
            optimizer=optimizer,
            schedule=schedule,
            seed=seed,
            grad_checkpointing=grad_checkpointing,
            compile=compile,
        )
        if not timm.is_model(backbone):
            raise ValueError("model.backbone: " + unknown("network", backbone, timm.list_models()))
        if name not in DETECTORS:
            raise ValueError("model.name: " + unknown("detector", name, DETECTORS))
        check_range("model.num_classes", num_classes, 1)
        check_range("model.in_chans", in_chans, 1)
        check_range("model.drop_path_rate", drop_path_rate, 0, below=1)
        self.name: str = name
        self.backbone: str = backbone
        self.num_classes = num_classes
        self.in_chans: int = in_chans
        self.pretrained: bool = pretrained
        self.initial_checkpoint: str | None = initial_checkpoint
        self.backbone_args: dict[str, Any] = dict(backbone_args or {})
        if in_chans != 3:
            self.backbone_args["in_chans"] = in_chans
        if drop_path_rate is not None:
            self.backbone_args["drop_path_rate"] = drop_path_rate
        self.config: dict[str, Any] = dict(config or {})

    @property
    def data(self) -> DetectionData:
        data = super().data
        assert isinstance(data, DetectionData)
        return data

    def metrics(self) -> CocoMetrics:
        return CocoMetrics(self.data.source("train").class_names or [] if self.has_data else [])

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(sorted(f"val/{name}" for name in CocoMetrics().values()))

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
        network = create_detector(
            self.name,
            self.backbone,
            num_classes=self.num_classes,
            pretrained=self.pretrained,
            backbone_args=self.backbone_args,
            **self.config,
        )
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
        data: Any = self.data.coco
        return {
            "model": self.name,
            "backbone": self.backbone,
            "backbone_args": self.backbone_args,
            "config": self.config,
            "num_classes": self.num_classes,
            "data_config": self.data.data_config(self.in_chans) | {"category_ids": list(data.category_ids)},
            "class_names": list(data.class_names),
        }

    def forward(self, images: Any) -> Any:
        """Detections; in training, with the targets beside the images, the losses."""
        self.configure_model()
        return self.network(images)

    def loss(self, batch: Batch) -> Tensor:
        self.configure_model()
        detector: Any = self.network
        losses = detector.loss(list(batch.images), batch.targets)
        total = torch.stack(list(losses.values())).sum()
        return total


#: What `ganglion fit` trains, and on what.
TASK = Detection
DATA = DetectionData
