"""Channel mixers: the second branch of a block."""

from __future__ import annotations

import timm.layers
from torch import Tensor, nn

from .basic import Linear2d


class Mlp(timm.layers.Mlp):
    """fc1, GELU, fc2 at every pixel of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x.permute(0, 2, 3, 1)))
        return self.fc2(x).permute(0, 3, 1, 2)


class GatedMlp(timm.layers.GluMlp):
    """fc1 to two halves u and z, fc2(u * GELU(z)), at every pixel of (B, C, H, W)."""

    def __init__(self, in_features: int, hidden_features: int, *, device=None, dtype=None):
        super().__init__(in_features, 2 * hidden_features, act_layer=nn.GELU, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.fc1(x.permute(0, 2, 3, 1)).chunk(2, dim=-1)
        return self.fc2(u * self.act(z)).permute(0, 3, 1, 2)


class ConvFFN(nn.Module):
    """fc1, residual depthwise 3x3, GELU, fc2 (Wang et al. 2022, PVT v2, with the convolution made residual)."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.fc1 = Linear2d(in_features, hidden_features, **dd)
        self.dwconv = nn.Conv2d(hidden_features, hidden_features, 3, padding=1, groups=hidden_features, **dd)
        self.act = nn.GELU()
        self.fc2 = Linear2d(hidden_features, out_features or in_features, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(self.act(x + self.dwconv(x)))
