"""Learned position embeddings."""

from __future__ import annotations

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from .basic import Device, DType


class PositionEmbedding(nn.Module):
    """A learned map added to the features, resized to their size (VMamba's `posembed`)."""

    def __init__(self, channels: int, size: tuple[int, int], *, device: Device = None, dtype: DType = None):
        super().__init__()
        self.weight: nn.Parameter = nn.Parameter(torch.empty(1, channels, *size, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + resize_like(self.weight, x)


@torch.fx.wrap
def resize_like(embed: Tensor, x: Tensor) -> Tensor:
    """(1, C, h, w) -> (1, C, H, W), the size of x, bicubic."""
    if not torch.jit.is_scripting():
        if torch.compiler.is_exporting():  # a branch would tie the program to sizes
            return F.interpolate(embed, size=x.shape[2:], mode="bicubic", align_corners=False)
    if embed.shape[2:] == x.shape[2:]:
        return embed
    return F.interpolate(embed, size=x.shape[2:], mode="bicubic", align_corners=False)
