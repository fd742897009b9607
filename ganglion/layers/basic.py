"""Norms, convolutions and activations of maps, (B, C, H, W) in channels-last memory.

The tokens of such a map, (B, H * W, C), are a view of it. Linear layers, LayerNorms and activations run on them, and
not on (B, H, W, C): `torch.compile` takes whatever has four axes for (B, C, H, W), and would keep that for the backward
pass in memory with H innermost, across which every kernel then reads and writes.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import check_choice
from ..ops.norm_op import norm_map
from .depthwise import convolve_and_activate, has_hooks
from .linear import project_and_activate

#: Where a module's parameters lie and of what type they are, as torch's own modules take it. None: torch's default.
Device = torch.device | str | int | None
DType = torch.dtype | None

Norm = Literal["ln", "bn", "gn"]
Act = Literal["silu", "gelu", "relu"]

_ACTS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU}


@torch.fx.wrap
def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


@torch.fx.wrap
def to_map(x: Tensor, like: Tensor) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W), with the sides of the map `like`."""
    return x.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map.

    halves: under autocast the result has the dtype of products, for norms whose results only products read. On a GPU
        it is then written once, and in that dtype; elsewhere it is float32, and the products cast it, to the same.
    """

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        *,
        halves: bool = False,
        device: Device = None,
        dtype: DType = None,
    ):
        super().__init__(channels, eps, device=device, dtype=dtype)
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            both = _normalised(self, x)
            if both is not None:
                return both[0]
        y = F.layer_norm(to_tokens(x), self.normalized_shape, self.weight, self.bias, self.eps)
        return to_map(y, x)


class GroupNorm2d(nn.GroupNorm):
    """GroupNorm with one group, over channels, height and width of a map. halves: as for `LayerNorm2d`."""

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        *,
        halves: bool = False,
        device: Device = None,
        dtype: DType = None,
    ):
        super().__init__(1, channels, eps, device=device, dtype=dtype)
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            both = _normalised(self, x)
            if both is not None:
                return both[0]
        return group_norm(x, self.weight, self.bias, self.eps)


@torch.fx.wrap
def group_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.group_norm` with one group. One node to FX, so that its quantization does not round what is normalised."""
    return F.group_norm(x, 1, weight, bias, eps)


def _normalised(
    norm: LayerNorm2d | GroupNorm2d,
    x: Tensor,
    branch: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """norm(x * scale + shift + branch) and the sum itself by a kernel, None where there is none."""
    if not isinstance(x, Tensor):  # a tracer's
        return None
    device, dtype = x.device.type, x.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device) if norm.halves else torch.float32
    per_image = isinstance(norm, nn.GroupNorm)
    return norm_map(
        x, branch, scale, shift, norm.weight, norm.bias, eps=norm.eps, per_image=per_image, dtype=dtype
    )


def sum_and_norm(
    x: Tensor, branch: Tensor, norm: nn.Module, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """x * scale + shift + branch and the norm of that, maps (B, C, H, W), where both are one pass over memory.

    None elsewhere, and where somebody waits for the norm to be called: it has hooks, or is another module by now.
    """
    if not isinstance(norm, (LayerNorm2d, GroupNorm2d)):
        return None
    if has_hooks(norm):
        return None
    both = _normalised(norm, x, branch, scale, shift)
    return None if both is None else (both[1], both[0])


def make_norm(
    kind: Norm,
    channels: int,
    *,
    eps: float = 1e-5,
    halves: bool = False,
    device: Device = None,
    dtype: DType = None,
) -> nn.Module:
    """ "ln" LayerNorm over channels, "bn" BatchNorm, "gn" GroupNorm with one group (over C, H and W).

    halves: see `LayerNorm2d`; BatchNorm has what it is given.

    Raises ValueError for another name.
    """
    check_choice("norm", kind, Norm)
    if kind == "bn":
        return nn.BatchNorm2d(channels, eps, device=device, dtype=dtype)
    cls = LayerNorm2d if kind == "ln" else GroupNorm2d
    return cls(channels, eps, halves=halves, device=device, dtype=dtype)


def make_act(name: Act) -> nn.Module:
    """An activation. Raises ValueError for an unknown name."""
    check_choice("activation", name, Act)
    return _ACTS[name]()


class Chain(nn.Sequential):
    """Layers of a map in turn. Linear layers and activations among them see its tokens."""

    def __init__(self, *layers: nn.Module):
        super().__init__(*layers)
        # Now, as a tool may put something of its own in a layer's place.
        self._of_tokens = [isinstance(layer, (nn.Linear, nn.GELU)) for layer in self]

    def forward(self, x: Tensor) -> Tensor:
        done = 0
        if not torch.jit.is_scripting():
            x, done = self._begin(x)
        for i, layer in enumerate(self):
            if i >= done:
                if self._of_tokens[i]:
                    if not torch.jit.is_scripting():
                        y = self._with_gelu(i, x)
                        if y is not None:
                            x, done = y, i + 2
                            continue
                    x = to_map(layer(to_tokens(x)), x)
                else:
                    x = layer(x)
        return x

    def _with_gelu(self, i: int, x: Tensor) -> Tensor | None:
        """Linear layer `i` and the GELU after it, if that is what they are and one operator."""
        if i + 1 >= len(self) or not isinstance(x, Tensor):
            return None
        y = project_and_activate(self[i], self[i + 1], to_tokens(x))
        return None if y is None else to_map(y, x)

    def _begin(self, x: Tensor) -> tuple[Tensor, int]:
        """A depthwise convolution, its BatchNorm and its activation at the beginning, if they are one pass over memory,
        and the number of these layers."""
        first = list(self)[:3]
        norms = [layer for layer in first[1:2] if type(layer) is nn.BatchNorm2d]
        n = 2 + len(norms)
        if len(first) < n:
            return x, 0
        y = convolve_and_activate(first[0], first[n - 1], x, *norms)
        return (x, 0) if y is None else (y, n)

    def fuse(self) -> Chain:
        """The same layers for inference, each BatchNorm folded into the layer before it, in float64. A new chain.

        `timm.models.reparameterize_model(network)` calls it for every chain of a network.

        Raises RuntimeError while a BatchNorm is in training mode: what it computes depends on the batch then.
        """
        layers: list[nn.Module] = []
        for layer in self:
            before = layers[-1] if layers else None
            if isinstance(layer, Chain):
                layers.append(layer.fuse())
            elif isinstance(layer, nn.BatchNorm2d) and isinstance(before, (nn.Linear, nn.Conv2d)):
                layers[-1] = _with_norm(before, layer)
            else:
                layers.append(layer)
        return Chain(*layers).train(self.training)


def _with_norm(layer: nn.Linear | nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
    """A copy of the layer that computes norm(layer(x))."""
    mean, var = norm.running_mean, norm.running_var
    if norm.training or mean is None or var is None:
        raise RuntimeError("a BatchNorm in training mode cannot be folded: call eval() on the network first")
    scale = (var.double() + norm.eps).rsqrt()
    shift = -mean.double()
    if layer.bias is not None:
        shift = shift + layer.bias.detach().double()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = shift * scale
    if norm.affine:
        shift = shift + norm.bias.detach().double()
    weight = layer.weight.detach().double()
    weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    folded = copy.deepcopy(layer)
    folded.weight = nn.Parameter(weight.to(layer.weight.dtype))
    folded.bias = nn.Parameter(shift.to(layer.weight.dtype))
    return folded


class ConvNorm(nn.Module):
    """Convolution, norm and, if asked for, a GELU. The map becomes channels-last in memory."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        padding: int,
        norm: Norm,
        bias: bool = True,
        act: bool = False,
        device: Device = None,
        dtype: DType = None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv: nn.Conv2d = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias, **dd
        )
        self.norm: nn.Module = make_norm(norm, out_channels, **dd)
        self.act: nn.GELU | nn.Identity = nn.GELU() if act else nn.Identity()
        self.unpadded: int = 0 if padding else kernel_size

    def forward(self, x: Tensor) -> Tensor:
        if self.unpadded > 0:
            x = at_least(x, self.unpadded)
        # Not contiguous(memory_format=...), which vmap does not know.
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        x = self.norm(self.conv(x))
        return to_map(self.act(to_tokens(x)), x)


@torch.fx.wrap
def at_least(x: Tensor, side: int) -> Tensor:
    """x, after checking that neither of its sides is shorter than `side`."""
    if not torch.jit.is_scripting():
        if torch.compiler.is_exporting():  # a branch would tie the program to sizes
            torch._check(x.shape[2] >= side)
            torch._check(x.shape[3] >= side)
            return x
    if x.shape[2] < side or x.shape[3] < side:
        raise ValueError(f"a map of {x.shape[2]} x {x.shape[3]}: this layer needs at least {side} x {side}")
    return x


class PatchMerging(nn.Module):
    """Swin's downsampling: the four pixels of each 2x2 patch are concatenated, normalised and projected.

    An odd side is padded with one row or column of zeros at its end. (B, C, H, W) -> (B, D, ceil(H/2), ceil(W/2)).
    With stride 1, patches begin at every pixel, and their pixels are `dilation` apart: see `Backbone`'s output_stride.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: Norm, device: Device = None, dtype: DType = None
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm: nn.Module = make_norm(norm, 4 * in_channels, **dd)
        self.reduction: nn.Linear = nn.Linear(4 * in_channels, out_channels, bias=False, **dd)
        self.stride: int = 2
        self.dilation: int = 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(patches(x, self.stride, self.dilation))
        return to_map(self.reduction(to_tokens(x)), x)


@torch.fx.wrap
def patches(x: Tensor, stride: int, dilation: int) -> Tensor:
    """(B, C, H, W) -> (B, 4 C, ceil(H / stride), ceil(W / stride)), ordered as the published weights: column first."""
    rows = (x.shape[2] + stride - 1) // stride * stride - stride + 1
    cols = (x.shape[3] + stride - 1) // stride * stride - stride + 1
    x = F.pad(x, (0, cols + dilation - x.shape[3], 0, rows + dilation - x.shape[2]))
    parts: list[Tensor] = []
    for j in (0, dilation):
        for i in (0, dilation):
            parts.append(x[:, :, i : i + rows : stride, j : j + cols : stride])
    return torch.cat(parts, 1)
