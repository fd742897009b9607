"""Detectors and segmentors by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import timm

from ..config import check_range
from ..errors import unknown
from ..models.registry import is_own
from .layers import Neck
from .mask_rcnn import MaskRCNN, MaskRCNNConfig
from .pyramid import create_pyramid
from .segmentor import Segmentor
from .semantic_fpn import SemanticFPNConfig, SemanticFPNHead
from .upernet import AuxiliaryHead, UperNetConfig, UperNetHead

Config = TypeVar("Config")

#: Detectors and segmentors with their configurations.
DETECTORS: dict[str, type] = {"mask_rcnn": MaskRCNNConfig}
SEGMENTORS: dict[str, type] = {"upernet": UperNetConfig, "semantic_fpn": SemanticFPNConfig}


def create_detector(
    name: str,
    backbone: str,
    *,
    num_classes: int = 80,
    pretrained: bool = False,
    backbone_args: Mapping[str, Any] | None = None,
    **config: Any,
) -> MaskRCNN:
    """A detector over a network of this library or of timm.

    name: one of `DETECTORS`. backbone: the network's name; SparX gets its learned scale, as published. num_classes: C,
    without the background. pretrained: the backbone begins with its published classifier's weights. backbone_args:
    further arguments of the network, e.g. {"in_chans": 4, "drop_path_rate": 0.2}. config: fields of `MaskRCNNConfig`.

    Raises ValueError for unknown names and values out of range, TypeError for unknown fields.
    """
    settings = _configuration("detector", name, DETECTORS, config)
    check_range("num_classes", num_classes, 1)
    arguments = dict(backbone_args or {})
    if is_own(backbone) and timm.model_entrypoint(backbone).__module__.endswith(".sparx"):
        arguments.setdefault("learned_scale", True)
    pyramid = create_pyramid(backbone, pretrained=pretrained, arguments=arguments)
    return MaskRCNN(pyramid, num_classes=num_classes, config=settings)


def create_segmentor(
    name: str,
    backbone: str,
    *,
    num_classes: int = 150,
    pretrained: bool = False,
    backbone_args: Mapping[str, Any] | None = None,
    **config: Any,
) -> Segmentor:
    """A segmentor over a network of this library or of timm.

    name: one of `SEGMENTORS`. config: fields of its configuration, `UperNetConfig` or `SemanticFPNConfig`. All else as
    for `create_detector`.
    """
    settings = _configuration("segmentor", name, SEGMENTORS, config)
    check_range("num_classes", num_classes, 1)
    pyramid = create_pyramid(backbone, pretrained=pretrained, arguments=backbone_args)
    if isinstance(settings, SemanticFPNConfig):
        neck = Neck(pyramid.channels, settings.neck_channels)
        channels = [settings.neck_channels] * len(pyramid.channels)
        head = SemanticFPNHead(channels, num_classes, settings)
        return Segmentor(pyramid, head, num_classes=num_classes, neck=neck)
    auxiliary = AuxiliaryHead(pyramid.channels, num_classes, settings) if settings.aux_channels else None
    head = UperNetHead(pyramid.channels, num_classes, settings)
    return Segmentor(pyramid, head, num_classes=num_classes, auxiliary_head=auxiliary)


def _configuration(kind: str, name: str, known: Mapping[str, type], given: dict[str, Any]) -> Any:
    if name not in known:
        raise ValueError(unknown(kind, name, known))
    fields = [field.name for field in dataclasses.fields(known[name])]
    for field in given:
        if field not in fields:
            raise TypeError(f"{name}: {unknown('field', field, fields)}")
    return known[name](**given)
