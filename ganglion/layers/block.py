"""The residual block of every network of both papers."""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .basic import Device, DType, sum_and_norm


class Block(nn.Module):
    """Mixer branch, channel-mixer branch (VMamba, Figure 3; SparX, Figure 2).

        x = ls1(x) + drop_path(mixer(norm1(x), earlier));  x = ls2(x) + drop_path(mlp(norm2(x)))

    mixer: called with the normalised map and the earlier features that the layer reads; a mixer of a normal layer
    ignores them. Either branch may be None, its norm then too. post_norm: the norm follows its branch instead.
    layer_scale: SparX's per-channel affine map on the identity path.

    Called with x alone, (B, C, H, W), or with one list of x and the earlier features, all of that shape: tools that put
    a module in a block's place expect one argument.
    """

    def __init__(
        self,
        dim: int,
        *,
        mixer: nn.Module | None,
        norm1: nn.Module | None,
        mlp: nn.Module | None = None,
        norm2: nn.Module | None = None,
        post_norm: bool = False,
        layer_scale: bool = False,
        drop_path: float = 0.0,
        device: Device = None,
        dtype: DType = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.post_norm = post_norm
        self.norm1 = norm1
        self.mixer = mixer
        self.ls1: IdentityScale | nn.Identity = (
            IdentityScale(dim, **dd) if layer_scale and mixer is not None else nn.Identity()
        )
        self.norm2 = norm2
        self.mlp = mlp
        self.ls2: IdentityScale | nn.Identity = (
            IdentityScale(dim, **dd) if layer_scale and mlp is not None else nn.Identity()
        )
        self.drop_path: DropPath | nn.Identity = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, features: Tensor | list[Tensor]) -> Tensor:
        """x, or x and the earlier features -> (B, C, H, W)."""
        earlier: list[Tensor] = []
        y: Tensor | None = None
        if isinstance(features, list):
            x, earlier = features[0], features[1:]
        else:
            x = features
        if self.mixer is not None and self.norm1 is not None:
            if self.post_norm:
                branch = self.norm1(self.mixer(x, earlier))
            else:
                branch = self.mixer(self.norm1(x), earlier)
            x, y = self._sum(x, self.drop_path(branch))
        if self.mlp is not None and self.norm2 is not None:
            if self.post_norm:
                branch = self.norm2(self.mlp(x))
            else:
                branch = self.mlp(self.norm2(x) if y is None else y)
            x = self.ls2(x) + self.drop_path(branch)
        return x

    def _sum(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sum after the first branch; its norm too, where one pass over memory does both."""
        if not torch.jit.is_scripting():
            if self.norm2 is not None and not self.post_norm:
                both = None
                if isinstance(self.ls1, IdentityScale):
                    if not self.ls1._forward_hooks:
                        both = sum_and_norm(x, branch, self.norm2, self.ls1.weight.flatten(), self.ls1.bias)
                elif type(self.ls1) is nn.Identity:
                    both = sum_and_norm(x, branch, self.norm2, None, None)
                if both is not None:
                    return both
        return self.ls1(x) + branch, None


class IdentityScale(nn.Module):
    """A weight and a bias per channel, starting as the identity (SparX's LayerScale, on the skip path).

    The weight has four axes, as the published depthwise 1x1 convolution, so that weight decay takes it the same way.
    """

    def __init__(self, dim: int, *, device: Device = None, dtype: DType = None):
        super().__init__()
        self.weight: nn.Parameter = nn.Parameter(torch.ones(dim, 1, 1, 1, device=device, dtype=dtype))
        self.bias: nn.Parameter = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias.view(1, -1, 1, 1), x, self.weight.view(1, -1, 1, 1))
