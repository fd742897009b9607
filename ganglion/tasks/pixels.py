"""Images as pixels, resized as the published pipelines of dense tasks do it; the colours of classes."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.decode import Raw

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Neighbouring classes differ in hue by the golden section of the circle.
_STEP = 0.61803398875


def new_size(size: Sequence[int], long_side: int, short_side: int) -> tuple[int, int]:
    """(height, width) of an image (height, width) that keeps its ratio and fits both sides; halves are rounded up."""
    factor = min(long_side / max(size), short_side / min(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def to_pixels(image: Raw) -> Tensor:
    """(C, h, w) uint8."""
    if isinstance(image, Tensor):
        return image
    values = np.array(image)
    return torch.from_numpy(values[None] if values.ndim == 2 else values.transpose(2, 0, 1).copy())


def normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> dict[str, list[float]]:
    """mean and std as an entry of a data_config has them: as given, or else ImageNet's.

    Raises ValueError for one that has neither one value nor one for every channel.
    """
    found = {}
    for name, given, known in (("mean", mean, _MEAN), ("std", std, _STD)):
        values = list(known if channels == 3 else known[:1]) if given is None else list(given)
        if len(values) not in (1, channels):
            raise ValueError(f"data.{name} has {len(values)} values: expected 1 or {channels}")
        found[name] = values
    return found


class Normalise:
    """Of pixels (C, h, w): (pixels - mean) / std, float32.

    data_config: with input_size, of which the first is C, and mean and std from 0 to 1, one or C of them each.
    """

    def __init__(self, data_config: Mapping[str, Any]):
        channels = data_config["input_size"][0]
        self._mean, self._std = (
            255 * torch.tensor(data_config[name]).expand(channels)[:, None, None] for name in ("mean", "std")
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels.float() - self._mean) / self._std


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) uint8 to a size (height, width), bilinear without antialiasing, in whole numbers as OpenCV does it.

    Weights have 11 bits, rows come first. Of 10,000 values some three differ from OpenCV's, by one."""
    channels, height, width = pixels.shape
    if (height, width) == size:
        return pixels
    # Rows of a matrix, so that both steps copy what lies together.
    x = _weighted(pixels.permute(2, 1, 0).reshape(width, -1).int(), size[1], (4, 0))
    x = x.view(size[1], height, channels).transpose(0, 1).reshape(height, -1)
    x = _weighted(x, size[0], (0, 16)).add_(2).bitwise_right_shift_(2)
    return x.clamp_(0, 255).to(torch.uint8).view(*size, channels).permute(2, 0, 1)


def _weighted(x: Tensor, count: int, shifts: tuple[int, int]) -> Tensor:
    """Between the rows of x (n, ...) int32 at `count` positions: (count, ...). shifts: bits cut off the sum, and
    off each part of it."""
    position = ((torch.arange(count, dtype=torch.float64) + 0.5) * (len(x) / count) - 0.5).float()
    low = position.floor()
    fraction = torch.where((low < 0) | (low >= len(x) - 1), torch.zeros_like(position), position - low)
    low = low.long().clamp(0, len(x) - 1)
    parts = []
    for index, weight in ((low, 1 - fraction), ((low + 1).clamp(max=len(x) - 1), fraction)):
        whole = (weight * 2048).round().int()
        parts.append(x[index].mul_(whole[:, None]).bitwise_right_shift_(shifts[1]))
    return parts[0].add_(parts[1]).bitwise_right_shift_(shifts[0])


def colour(index: int) -> tuple[int, int, int]:
    """The colour of a class: the same in every image."""
    red, green, blue = colorsys.hsv_to_rgb(
        (0.02 + index * _STEP) % 1, (0.85, 0.65)[index % 2], (0.95, 0.8)[index // 2 % 2]
    )
    return round(255 * red), round(255 * green), round(255 * blue)
