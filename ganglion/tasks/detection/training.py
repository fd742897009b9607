"""Object detection with masks: Mask R-CNN on any network with four maps, measured by COCO's average precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...data import Batch
from ...heads import DETECTORS, create_detector
from ...training.optimization import OptimizerConfig, ScheduleConfig
from ..dense import DenseTask
from .data import DetectionData
from .metrics import CocoMetrics


class Detection(DenseTask):
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

    KIND, NAMES = "detector", DETECTORS

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
            backbone,
            name=name,
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=pretrained,
            initial_checkpoint=initial_checkpoint,
            drop_path_rate=drop_path_rate,
            backbone_args=backbone_args,
            config=config,
            optimizer=optimizer,
            schedule=schedule,
            seed=seed,
            grad_checkpointing=grad_checkpointing,
            compile=compile,
        )

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

    def create(self, num_classes: int) -> nn.Module:
        return create_detector(
            self.name,
            self.backbone,
            num_classes=num_classes,
            pretrained=self.pretrained,
            backbone_args=self.backbone_args,
            **self.config,
        )

    def description(self) -> dict[str, Any]:
        found = super().description()
        found["data_config"]["category_ids"] = list(self.data.coco.category_ids)
        return found

    def loss(self, batch: Batch) -> Tensor:
        self.configure_model()
        detector: Any = self.network
        losses = detector.loss(list(batch.images), batch.targets)
        total = torch.stack(list(losses.values())).sum()
        return total


#: What `ganglion fit` trains, and on what.
TASK = Detection
DATA = DetectionData
