"""Semantic FPN (Kirillov et al. 2019): the lighter segmentor of SparX's tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import check_positive, check_range
from .layers import Classifier, ConvNormAct, resize


@dataclass(frozen=True, kw_only=True)
class SemanticFPNConfig:
    """The published settings. neck_channels: of the feature pyramid network. channels: of the head."""

    neck_channels: int = 256
    channels: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_positive(self, "neck_channels", "channels")
        check_range("SemanticFPNConfig.dropout", self.dropout, 0, below=1)


class _Upsample(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class SemanticFPNHead(Classifier):
    """Four maps of a neck -> logits (B, num_classes, H / 4, W / 4): each is brought up step by step, all are added."""

    def __init__(self, in_channels: list[int], num_classes: int, config: SemanticFPNConfig):
        super().__init__(config.channels, num_classes, config.dropout)
        self.scale_heads: nn.ModuleList = nn.ModuleList()
        for i, channels in enumerate(in_channels):
            steps: list[nn.Module] = []
            for k in range(max(1, i)):
                steps.append(ConvNormAct(channels if k == 0 else config.channels, config.channels, 3))
                if i > 0:
                    steps.append(_Upsample())
            self.scale_heads.append(nn.Sequential(*steps))

    def forward(self, maps: list[Tensor]) -> Tensor:
        first, *others = (head(m) for head, m in zip(self.scale_heads, maps, strict=True))
        for x in others:
            first = first + resize(x, first)
        return self.conv_seg(self.dropout(first))
