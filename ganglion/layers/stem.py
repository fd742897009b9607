"""From pixels to the first map, and from one stage to the next.

`patch_size` is the side of the square of pixels that becomes one of the first map: 4 as published, 2 for small images.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ..config import check_choice
from .basic import ConvNorm, Device, DType, Norm, PatchMerging

Downsample = Literal["merge", "conv2", "conv3"]


def patch_stem(
    in_chans: int, dim: int, *, norm: Norm, patch_size: int = 4, device: Device = None, dtype: DType = None
) -> nn.Sequential:
    """One convolution of a patch, at the stride of a patch (VMamba's stem v1). Side n becomes n // patch_size."""
    dd: dict[str, Any] = {"device": device, "dtype": dtype}
    return nn.Sequential(ConvNorm(in_chans, dim, patch_size, stride=patch_size, padding=0, norm=norm, **dd))


def conv_stem(
    in_chans: int,
    dim: int,
    *,
    norm: Norm,
    patch_size: int = 4,
    bias: bool = True,
    extra: bool = False,
    device: Device = None,
    dtype: DType = None,
) -> nn.Sequential:
    """Two 3x3 convolutions, GELU between (VMamba's stem v2, SparX's v1), of strides 2 and patch_size / 2.

    extra: a third one of stride 1 in the middle (SparX's stem v2). Side n becomes ceil(n / patch_size).

    Raises ValueError unless patch_size is even.
    """
    if patch_size < 2 or patch_size % 2:
        raise ValueError(f"patch_size is {patch_size!r}: expected an even number of pixels")
    dd: dict[str, Any] = {"norm": norm, "bias": bias, "device": device, "dtype": dtype}
    half = dim // 2
    return nn.Sequential(
        ConvNorm(in_chans, half, 3, stride=2, padding=1, act=True, **dd),
        *([ConvNorm(half, half, 3, stride=1, padding=1, act=True, **dd)] if extra else []),
        ConvNorm(half, dim, 3, stride=patch_size // 2, padding=1, **dd),
    )


def make_downsample(
    kind: Downsample,
    in_dim: int,
    out_dim: int,
    *,
    norm: Norm,
    bias: bool = True,
    device: Device = None,
    dtype: DType = None,
) -> nn.Module:
    """ "merge" Swin's patch merging, "conv2" a 2x2 and "conv3" a 3x3 convolution of stride 2 (VMamba's v1, v2, v3).

    Side n becomes ceil(n / 2), with "conv2" n // 2. Raises ValueError for another name.
    """
    check_choice("downsampling", kind, Downsample)
    dd: dict[str, Any] = {"device": device, "dtype": dtype}
    if kind == "merge":
        return PatchMerging(in_dim, out_dim, norm=norm, **dd)
    size, padding = (2, 0) if kind == "conv2" else (3, 1)
    return ConvNorm(in_dim, out_dim, size, stride=2, padding=padding, norm=norm, bias=bias, **dd)
