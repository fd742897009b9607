"""Detectors and segmentors by shape alone: what the papers count of them, as a network of fixed shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import unknown
from ..heads import DETECTORS, SEGMENTORS, MaskRCNN, Segmentor, create_detector, create_segmentor

HeadName = Literal["mask_rcnn", "upernet", "semantic_fpn"]
HEADS: tuple[HeadName, ...] = get_args(HeadName)

#: Boxes of an image whose masks are counted, as the published counter does: the first of the proposals.
_MASKS = 100


@dataclass(frozen=True, kw_only=True)
class HeadSetting:
    """What the papers count a detector or segmentor at: img_size (height, width), and num_classes of its data set."""

    img_size: tuple[int, int]
    num_classes: int


_COCO = HeadSetting(img_size=(1280, 800), num_classes=80)
_ADE20K = HeadSetting(img_size=(512, 2048), num_classes=150)
SETTINGS: dict[HeadName, HeadSetting] = {"mask_rcnn": _COCO, "upernet": _ADE20K, "semantic_fpn": _ADE20K}


class FixedShapes(nn.Module):
    """A detector or segmentor whose forward pass has shapes that depend on the image's alone.

    network: it. A segmentor ends at the maps that its head makes, without the resizing to the image; its auxiliary
    head runs in training only. A detector has its box head on as many boxes of an image as it takes proposals, or in
    training samples, and its mask head on 100 of them, or in training on a quarter; what is in these boxes is zeros.
    """

    def __init__(self, network: MaskRCNN | Segmentor):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        network = self.network
        if isinstance(network, MaskRCNN):
            return self._detector(network, images)
        if self.training and network.auxiliary_head is not None:
            maps = network.backbone(images)
            neck = maps if network.neck is None else network.neck(maps)
            return [network.decode_head(neck), network.auxiliary_head(maps)]
        return [network.low_resolution(images)]

    def _detector(self, network: MaskRCNN, images: Tensor) -> list[Tensor]:
        config = network.config
        boxes = config.box_samples if self.training else config.proposals
        masks = config.box_samples // 4 if self.training else min(boxes, _MASKS)
        _, logits, deltas = network.dense(images)
        regions = images.new_zeros(len(images) * boxes, config.channels, 7, 7)
        scores, moves = network.box_predictor(network.box_head(regions))
        regions = images.new_zeros(len(images) * masks, config.channels, 14, 14)
        found = network.mask_predictor(network.mask_head(regions))
        return [*logits, *deltas, scores, moves, found]


def fixed_shapes(model: nn.Module) -> nn.Module:
    """A detector or segmentor as `FixedShapes`; any other network itself."""
    return FixedShapes(model) if isinstance(model, (MaskRCNN, Segmentor)) else model


def shapes_of(head: str, backbone: str, *, num_classes: int | None = None, in_chans: int = 3) -> FixedShapes:
    """A detector or segmentor without weights (on meta), to be given to `complexity` and `activation_memory`.

    head: one of `HEADS`. backbone: a network of this library or of timm. num_classes: None for the papers'.

    Raises ValueError for unknown names and for networks without the four maps.
    """
    if head not in HEADS:
        raise ValueError(unknown("head", head, HEADS))
    classes = SETTINGS[head].num_classes if num_classes is None else num_classes
    create = create_detector if head in DETECTORS else create_segmentor
    assert head in DETECTORS or head in SEGMENTORS
    arguments = {} if in_chans == 3 else {"in_chans": in_chans}
    with torch.device("meta"):
        return FixedShapes(create(head, backbone, num_classes=classes, backbone_args=arguments))
