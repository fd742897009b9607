"""UperNet (Xiao et al. 2018) with its auxiliary head: the segmentor of both papers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import check_positive, check_range
from .layers import Classifier, ConvNormAct, resize


@dataclass(frozen=True, kw_only=True)
class UperNetConfig:
    """The published settings.

    channels: of the head. pool_scales: sides of the pooled maps of the pyramid pooling module. dropout: before the
    classifiers. aux_channels: of the auxiliary head, which reads the map at stride 16; 0 for none. aux_weight: of its
    loss.
    """

    channels: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    dropout: float = 0.1
    aux_channels: int = 256
    aux_weight: float = 0.4

    def __post_init__(self) -> None:
        check_positive(self, "channels", "pool_scales")
        check_range("UperNetConfig.dropout", self.dropout, 0, below=1)
        check_range("UperNetConfig.aux_channels", self.aux_channels, 0)
        check_range("UperNetConfig.aux_weight", self.aux_weight, 0)


class UperNetHead(Classifier):
    """Four maps -> logits (B, num_classes, H / 4, W / 4)."""

    def __init__(self, in_channels: list[int], num_classes: int, config: UperNetConfig):
        super().__init__(config.channels, num_classes, config.dropout)
        channels, top = config.channels, in_channels[-1]
        self.psp_modules: nn.ModuleList = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormAct(top, channels, 1))
            for scale in config.pool_scales
        )
        self.bottleneck: ConvNormAct = ConvNormAct(top + len(config.pool_scales) * channels, channels, 3)
        self.lateral_convs: nn.ModuleList = nn.ModuleList(
            ConvNormAct(c, channels, 1) for c in in_channels[:-1]
        )
        self.fpn_convs: nn.ModuleList = nn.ModuleList(
            ConvNormAct(channels, channels, 3) for _ in in_channels[:-1]
        )
        self.fpn_bottleneck: ConvNormAct = ConvNormAct(len(in_channels) * channels, channels, 3)

    def forward(self, maps: list[Tensor]) -> Tensor:
        top = maps[-1]
        pooled = [resize(module(top), top) for module in self.psp_modules]
        x = self.bottleneck(torch.cat([top, *pooled], dim=1))
        laterals = [lateral(m) for lateral, m in zip(self.lateral_convs, maps[:-1], strict=True)]
        outs = [x]
        for lateral in reversed(laterals):
            x = lateral + resize(x, lateral)
            outs.insert(0, x)
        outs[:-1] = [conv(m) for conv, m in zip(self.fpn_convs, outs[:-1], strict=True)]
        x = self.fpn_bottleneck(torch.cat([outs[0], *(resize(m, outs[0]) for m in outs[1:])], dim=1))
        return self.conv_seg(self.dropout(x))


class AuxiliaryHead(Classifier):
    """The map at stride 16 -> logits. Used in training only."""

    def __init__(self, in_channels: list[int], num_classes: int, config: UperNetConfig):
        super().__init__(config.aux_channels, num_classes, config.dropout)
        self.convs: nn.Sequential = nn.Sequential(ConvNormAct(in_channels[2], config.aux_channels, 3))
        self.weight: float = config.aux_weight

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv_seg(self.dropout(self.convs(maps[2])))
