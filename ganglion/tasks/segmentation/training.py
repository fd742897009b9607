"""Semantic segmentation: UperNet or Semantic FPN on any network with four maps, measured by mean IoU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...data import Batch
from ...heads import SEGMENTORS, create_segmentor
from ...training.errors import TrainingError
from ...training.optimization import OptimizerConfig, ScheduleConfig
from ..dense import DenseTask
from .data import SegmentationData
from .metrics import SegmentationMetrics


class Segmentation(DenseTask):
    """A segmentor and its losses.

    Args:
        backbone: a network of this library or of timm.
        name: the segmentor.
        num_classes: classes. null: those of the data.
        in_chans: channels of the images.
        pretrained: the backbone begins with its published classifier's weights.
        initial_checkpoint: begin with the weights of this file: a published segmentor of as many classes, or a
            classifier, whose weights the backbone takes.
        drop_path_rate: stochastic depth of the last block. null: the network's own.
        backbone_args: further arguments of the backbone.
        config: fields of the segmentor's configuration, e.g. {channels: 256}.
        optimizer: see `optimizer`.
        schedule: see `schedule`.
        seed: see `seed_everything`.
        grad_checkpointing: recompute blocks of the backbone in the backward pass.
        compile: torch.compile the backbone, as all of its blocks.
    """

    KIND, NAMES = "segmentor", SEGMENTORS

    def __init__(
        self,
        backbone: str,
        *,
        name: str = "upernet",
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
    def data(self) -> SegmentationData:
        data = super().data
        assert isinstance(data, SegmentationData)
        return data

    def metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics(self.data.source("train").class_names or [] if self.has_data else [])

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(f"val/{name}" for name in SegmentationMetrics.TITLES)

    def create(self, num_classes: int) -> nn.Module:
        return create_segmentor(
            self.name,
            self.backbone,
            num_classes=num_classes,
            pretrained=self.pretrained,
            backbone_args=self.backbone_args,
            **self.config,
        )

    def build(self) -> nn.Module:
        if self.has_data and self.name == "upernet" and self.data.batch_size < 2:
            raise TrainingError(
                "data.batch_size is 1: UperNet pools a map to one pixel and normalises it over the batch; expected at "
                "least 2, or model.name semantic_fpn"
            )
        return super().build()

    def loss(self, batch: Batch) -> Tensor:
        self.configure_model()
        segmentor: Any = self.network
        losses = segmentor.loss(batch.images, batch.targets)
        return torch.stack([value for name, value in losses.items() if name.endswith("loss_ce")]).sum()


#: What `ganglion fit` trains, and on what.
TASK = Segmentation
DATA = SegmentationData
