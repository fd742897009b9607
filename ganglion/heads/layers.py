"""What the heads are made of."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


class ConvNormAct(nn.Module):
    """Convolution without a bias and with the padding that keeps the size, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv: nn.Conv2d = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.bn: nn.BatchNorm2d = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Classifier(nn.Module):
    """Dropout of whole channels and a 1x1 convolution to the classes' logits."""

    def __init__(self, channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout: nn.Dropout2d = nn.Dropout2d(dropout)
        self.conv_seg: nn.Conv2d = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        assert self.conv_seg.bias is not None
        nn.init.zeros_(self.conv_seg.bias)


class Neck(nn.Module):
    """A feature pyramid network (Lin et al. 2017): 1x1 convolutions, sums from the top (nearest), 3x3 convolutions.

    channels: of the maps it takes. extra_level: also every second pixel of the last map.
    """

    def __init__(self, channels: list[int], out_channels: int, *, extra_level: bool = False):
        super().__init__()
        self.fpn: FeaturePyramidNetwork = FeaturePyramidNetwork(
            channels, out_channels, extra_blocks=LastLevelMaxPool() if extra_level else None
        )
        for module in self.fpn.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return list(self.fpn(OrderedDict((str(i), m) for i, m in enumerate(maps))).values())


def resize(x: Tensor, like: Tensor) -> Tensor:
    """x in the height and width of another map, bilinear."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
