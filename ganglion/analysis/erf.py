"""Effective receptive fields: which pixels of the image a feature depends on (VMamba, Figure 10; SparX, Figure 4)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models import Backbone
from .scans import as_analysed, peeked

#: Fractions of the contribution that the papers' tables ask for.
FRACTIONS = (0.2, 0.3, 0.5, 0.99)


def effective_receptive_field(
    network: nn.Module,
    images: Tensor | Iterable[Tensor | Sequence[Tensor]],
    stage: int = -1,
    position: tuple[int, int] | None = None,
) -> Tensor:
    """How much each pixel contributes to the features at one position of a stage (H, W).

    For an image, s = sum_c relu(F[c, row, column]), F the stage's output without norm or head, and the map is
    sum over the image's channels of relu(ds / d image); the result is the mean over the images.

    network: one of this library, one of timm, or its `features_only` form, or any module whose output is a map
        (B, C, H, W). It runs in eval mode, and is left as it was.
    images: (B, C, H, W), which are computed one at a time, or batches of that shape (or sequences that
        begin with one), one size for all. float32 or float64, in which all is computed.
    stage: index of the map, from 0, or from the end if negative: of `forward_intermediates` where the network
        has it (for ResNet these begin with the stem, for ViT they are the blocks).
    position: (row, column) on that map; (H // 2, W // 2) of it if None.

    An image whose map is not finite is skipped, and a warning says how many were.

    Raises IndexError for a stage or position that does not exist, TypeError for a dtype that is not served or an output
    that is no map, ValueError where no image is left, or the images differ in size.
    """
    dtype, batches = peeked(images)
    total: Tensor | None = None
    used = skipped = 0
    with as_analysed(network, dtype) as ready:
        for item in batches:
            batch = item if isinstance(item, Tensor) else item[0]
            if batch.ndim != 4 or batch.dtype != dtype:
                raise ValueError(
                    f"images has shape {tuple(batch.shape)} and {batch.dtype}: expected (B, C, H, W), {dtype}"
                )
            maps = _contributions(ready, batch, stage, position)
            finite = maps.isfinite().flatten(1).all(1)
            used, skipped = used + int(finite.sum()), skipped + int((~finite).sum())
            summed = maps[finite].double().sum(0)
            if total is not None and total.shape != summed.shape:
                raise ValueError(
                    f"images of {tuple(total.shape)} and {tuple(summed.shape)}: expected one size for all"
                )
            total = summed if total is None else total + summed
    if total is None or not used:
        raise ValueError(f"all {skipped} images gave a map that is not finite")
    if skipped:
        warnings.warn(
            f"{skipped} of {used + skipped} images were skipped: not finite", UserWarning, stacklevel=2
        )
    return (total / used).to(dtype)


def _contributions(
    network: nn.Module, images: Tensor, stage: int, position: tuple[int, int] | None
) -> Tensor:
    """(B, H, W): the map of each image."""
    with torch.inference_mode(False), torch.enable_grad():
        x = images.detach().clone().requires_grad_()
        features = stage_features(network, x, stage)
        height, width = features.shape[2:]
        row, column = (height // 2, width // 2) if position is None else position
        if not (0 <= row < height and 0 <= column < width):
            raise IndexError(f"position {(row, column)}: the map of stage {stage} has {height} x {width}")
        (gradient,) = torch.autograd.grad(features[:, :, row, column].relu().sum(), x)
    return gradient.relu().sum(1)


def stage_features(network: nn.Module, images: Tensor, stage: int = -1) -> Tensor:
    """The output of a stage without norms, (B, C, H, W). Errors as of `effective_receptive_field`."""
    own = next((module for module in network.modules() if isinstance(module, Backbone)), None)
    if own is not None:  # alone, or below a head, or in a wrapper, which may put norms on the maps
        x = own.pos_embed(own.stem(images))
        for module in list(own.stages)[: _index(stage, len(own.stages)) + 1]:
            x = module(x)
        return x
    whole: Any = network
    if hasattr(whole, "forward_intermediates"):
        maps = whole.forward_intermediates(images, norm=False, output_fmt="NCHW", intermediates_only=True)
    elif hasattr(whole, "forward_features"):
        maps = [whole.forward_features(images)]
    else:
        maps = whole(images)
        if isinstance(maps, dict):
            maps = list(maps.values())
        maps = list(maps) if isinstance(maps, (list, tuple)) else [maps]
    features = maps[_index(stage, len(maps))]
    channels = None
    if len(maps) > 1 and hasattr(whole, "feature_info") and hasattr(whole.feature_info, "channels"):
        channels = whole.feature_info.channels()[_index(stage, len(maps))]
    elif len(maps) == 1:
        channels = getattr(whole, "num_features", None)
    return _as_map(features, channels, getattr(whole, "num_prefix_tokens", 0), images.shape[2:])


def _index(stage: int, count: int) -> int:
    if not -count <= stage < count:
        raise IndexError(f"stage {stage}: the network has {count}, expected {-count}..{count - 1}")
    return stage % count


def _as_map(x: Any, channels: int | None, prefix: int, size: Sequence[int]) -> Tensor:
    """NCHW, NHWC or tokens (B, L, C) as (B, C, H, W). size: of the image, whose shape a map of tokens has."""
    if isinstance(x, Tensor) and x.ndim == 4:
        return x.movedim(3, 1) if x.shape[1] != channels and x.shape[3] == channels else x
    if isinstance(x, Tensor) and x.ndim == 3:
        tokens = x[:, prefix:]
        height = round(math.sqrt(tokens.shape[1] * size[0] / size[1]))
        if height and tokens.shape[1] % height == 0:
            return tokens.mT.unflatten(2, (height, -1))
    found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
    raise TypeError(
        f"the network's output has {found}: expected a map (B, C, H, W), or tokens (B, L, C) of one"
    )


@dataclass(frozen=True, kw_only=True)
class Square:
    """The smallest centred square with more than a fraction of the contribution.

    side: odd, in pixels, None where no square within the image has as much. area: of the image, None likewise.
    largest: side of the largest square that lies within the image.
    """

    fraction: float
    side: int | None
    area: float | None
    largest: int


def contribution_squares(
    field: Tensor, fractions: Iterable[float] = FRACTIONS, centre: tuple[int, int] | None = None
) -> list[Square]:
    """The high-contribution areas of a receptive field (H, W), as RepLKNet's tables have them (of the raw map).

    centre: the pixel around which squares lie, (H // 2, W // 2) if None.

    Raises ValueError for a field of another shape, IndexError for a centre outside of it.
    """
    if field.ndim != 2:
        raise ValueError(f"field has shape {tuple(field.shape)}: expected (H, W)")
    height, width = field.shape
    row, column = (height // 2, width // 2) if centre is None else centre
    if not (0 <= row < height and 0 <= column < width):
        raise IndexError(f"centre {(row, column)}: the field has {height} x {width} pixels")
    radius = min(row, column, height - 1 - row, width - 1 - column)
    down = (torch.arange(height) - row).abs()
    across = (torch.arange(width) - column).abs()
    ring = torch.maximum(down[:, None], across)  # the square of side 2 r + 1 is rings 0 to r
    values = field.detach().double().cpu()
    rings = torch.bincount(ring.flatten(), weights=values.flatten())
    held = (rings[: radius + 1].cumsum(0) / values.sum()).tolist()
    squares = []
    for fraction in fractions:
        side = next((2 * r + 1 for r, share in enumerate(held) if share > fraction), None)
        area = None if side is None else side * side / (height * width)
        squares.append(Square(fraction=fraction, side=side, area=area, largest=2 * radius + 1))
    return squares
