"""Channel mixers: the second branch of a block.

Notable: the hidden map is four times the size of its input and lives for a moment. At inference on a CPU it is made and
used slice by slice, so that it stays in cache and no fresh memory of its full size is touched.
"""

from __future__ import annotations

from typing import Any

import timm.layers
import torch
import torch.fx
from torch import Tensor, nn

from .basic import Device, DType, to_map, to_tokens
from .depthwise import ResidualDWConv, convolve_and_activate
from .linear import project_and_activate

torch.fx.wrap("to_map")
torch.fx.wrap("to_tokens")


#: Hidden maps above this size are made in slices of _SLICE bytes per thread. A convolution gains from less.
_WHOLE = 12 << 20
_WHOLE_CONV = 8 << 20
_SLICE = 2 << 20


def n_slices(x: Tensor, hidden_features: int, whole: int) -> int:
    """In how many slices to make the hidden map of x, (B, C, H, W), if it has more than `whole` bytes.

    More than one only at inference on a CPU.
    """
    if not isinstance(x, Tensor) or torch.is_grad_enabled() or x.device.type != "cpu":
        return 1
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return 1
    size = x.numel() // x.shape[1] * hidden_features * x.element_size()
    return 1 if size <= whole else -(-size // (_SLICE * torch.get_num_threads()))


class Mlp(nn.Module):
    """fc1, GELU, fc2 at every pixel of (B, C, H, W)."""

    def __init__(self, in_features: int, hidden_features: int, *, device: Device = None, dtype: DType = None):
        super().__init__()
        self.hidden_features = hidden_features
        self.fc1: nn.Linear = nn.Linear(in_features, hidden_features, device=device, dtype=dtype)
        self.act: nn.GELU = nn.GELU()
        self.fc2: nn.Linear = nn.Linear(hidden_features, in_features, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x_BLC = to_tokens(x)
        if not torch.jit.is_scripting():
            n = n_slices(x, self.hidden_features, _WHOLE)
            if n > 1:
                rows = x_BLC.flatten(0, 1).chunk(n)
                y = torch.cat([self.fc2(self._hidden(part)) for part in rows])
                return to_map(y.view(x_BLC.shape), x)
        return to_map(self.fc2(self._hidden(x_BLC)), x)

    def _hidden(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            y = project_and_activate(self.fc1, self.act, x)
            if y is not None:
                return y
        return self.act(self.fc1(x))


class GatedMlp(timm.layers.GluMlp):
    """fc1 to two halves u and z, fc2(u * GELU(z)), at every pixel of (B, C, H, W)."""

    def __init__(self, in_features: int, hidden_features: int, *, device: Device = None, dtype: DType = None):
        super().__init__(in_features, 2 * hidden_features, act_layer=nn.GELU, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.fc1(to_tokens(x)).chunk(2, dim=-1)
        return to_map(self.fc2(u * self.act(z)), x)


class ConvFFN(nn.Module):
    """fc1, residual depthwise 3x3, GELU, fc2 (Wang et al. 2022, PVT v2, with the convolution made residual)."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        device: Device = None,
        dtype: DType = None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.hidden_features = hidden_features
        self.fc1: nn.Linear = nn.Linear(in_features, hidden_features, **dd)
        self.dwconv: ResidualDWConv = ResidualDWConv(hidden_features, **dd)
        self.act: nn.GELU = nn.GELU()
        self.fc2: nn.Linear = nn.Linear(hidden_features, out_features or in_features, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            n = n_slices(x, self.hidden_features, _WHOLE_CONV)
            if n > 1:
                return torch.cat([self._forward(images) for images in x.chunk(n)])
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        # One name: a hidden map is given up as soon as the next is there.
        hidden = self.fc1(to_tokens(x))
        done: Tensor | None = None
        if not torch.jit.is_scripting():
            done = convolve_and_activate(self.dwconv, self.act, to_map(hidden, x))
        if done is None:
            hidden = to_tokens(self.dwconv(to_map(hidden, x)))
            hidden = self.act(hidden)
        else:
            hidden = to_tokens(done)
        return to_map(self.fc2(hidden), x)
