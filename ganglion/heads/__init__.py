"""Detectors and segmentors over any backbone: Mask R-CNN, UperNet, Semantic FPN, as published with VMamba and SparX."""

from .augmented import detect_multi_scale
from .create import (
    DETECTORS,
    SEGMENTORS,
    create_detector,
    create_segmentor,
)
from .mask_rcnn import MaskRCNN, MaskRCNNConfig
from .pyramid import STRIDES, Pyramid, create_pyramid
from .segmentor import IGNORED, Segmentor, at_size, multi_scale, slide, slide_bands
from .semantic_fpn import SemanticFPNConfig
from .upernet import UperNetConfig
from .weight_names import to_official

__all__ = [
    "DETECTORS",
    "IGNORED",
    "SEGMENTORS",
    "STRIDES",
    "MaskRCNN",
    "MaskRCNNConfig",
    "Pyramid",
    "Segmentor",
    "SemanticFPNConfig",
    "UperNetConfig",
    "at_size",
    "create_detector",
    "create_pyramid",
    "create_segmentor",
    "detect_multi_scale",
    "multi_scale",
    "slide",
    "slide_bands",
    "to_official",
]
