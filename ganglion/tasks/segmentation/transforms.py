"""From an image and its label map to what a segmentor is given, as published (mmsegmentation's configurations)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import check_range
from ...data import Ragged
from ...data.decode import Raw
from ...data.masks import IGNORED
from ..pixels import Normalise, new_size, resize, to_pixels

#: Draws of a crop until its labels are varied enough, and the largest fraction of one class that is.
_DRAWS, _MOST = 10, 0.75


@dataclass(frozen=True, kw_only=True)
class SegmentationAugmentation:
    """Augmentation of training images.

    Args:
        scale: both sides of evaluation times a factor between these two.
        crop: side of the square crop in pixels, or its height and width; what is missing is filled, with no label.
        hflip: probability of a horizontal flip.
        distortion: probability of each of brightness, contrast, saturation and hue.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    crop: int | tuple[int, int] = 512
    hflip: float = 0.5
    distortion: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"data.augmentation.scale is {self.scale}: expected 0 < low <= high")
        for side in self.crop_size:
            check_range("data.augmentation.crop", side, 1)
        check_range("data.augmentation.hflip", self.hflip, 0, 1)
        check_range("data.augmentation.distortion", self.distortion, 0, 1)

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop


class Resize:
    """Evaluation: the image resized and normalised. The label map stays as it is.

    data_config: with input_size (channels, short, long side), mean and std of values from 0 to 1, and multiple, to
        which sides are rounded up (SparX: 32; the ratio is then not kept).
    """

    def __init__(self, data_config: dict[str, Any]):
        _, short_side, long_side = data_config["input_size"]
        self.short_side: int = short_side
        self.long_side: int = long_side
        self.multiple: int = data_config.get("multiple", 1)
        self.normalise: Normalise = Normalise(data_config)

    def __call__(self, image: Raw, target: Any) -> tuple[Tensor, Any]:
        pixels = to_pixels(image)
        pixels = resize(pixels, new_size(pixels.shape[1:], self.long_side, self.short_side))
        if self.multiple > 1:
            height, width = (-(-side // self.multiple) * self.multiple for side in pixels.shape[1:])
            pixels = resize(pixels, (height, width))
        return self.normalise(pixels), target


class Augment(Resize):
    """Training: image and label map scaled, cropped, flipped, distorted and normalised together."""

    def __init__(self, data_config: dict[str, Any], augmentation: SegmentationAugmentation):
        super().__init__(data_config)
        self.augmentation = augmentation

    def __call__(self, image: Raw, target: Any) -> tuple[Tensor, Any]:
        pixels = to_pixels(image)
        if target is None:
            return super().__call__(image, None)
        factor = random.uniform(*self.augmentation.scale)
        size = new_size(pixels.shape[1:], int(self.long_side * factor), int(self.short_side * factor))
        height, width = crop = self.augmentation.crop_size
        pixels, labels = cropped(resize(pixels, size), nearest(target, size), crop)
        if random.random() < self.augmentation.hflip:
            pixels, labels = pixels.flip(2), labels.flip(1)
        if len(pixels) == 3:
            pixels = distorted(pixels, self.augmentation.distortion)
        missing = (0, width - pixels.shape[2], 0, height - pixels.shape[1])
        return F.pad(self.normalise(pixels), missing), F.pad(labels, missing, value=IGNORED)


def nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) to a size (height, width), labels taken as OpenCV takes them: in float64, not torch's float32."""
    rows, cols = (
        (torch.arange(new, dtype=torch.float64) * (old / new)).floor().long().clamp(max=old - 1)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], cols]


def cropped(pixels: Tensor, labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A random part of (C, h, w) and (h, w), `size` (height, width) or smaller where they are, that is not nearly all
    of one class."""
    height, width = labels.shape
    rows, cols = min(size[0], height), min(size[1], width)
    for _ in range(_DRAWS):
        top, left = random.randint(0, height - rows), random.randint(0, width - cols)
        part = labels[top : top + rows, left : left + cols]
        counts = torch.bincount(part[part != IGNORED], minlength=1)
        if (counts > 0).sum() > 1 and counts.max() / counts.sum() < _MOST:
            break
    return pixels[:, top : top + rows, left : left + cols], part


def distorted(pixels: Tensor, probability: float) -> Tensor:
    """(3, h, w) uint8 with another brightness, contrast, saturation and hue, each with this probability."""
    contrast_last = random.random() < 0.5
    if random.random() < probability:
        pixels = _whole(pixels.float() + random.uniform(-32, 32))
    if not contrast_last and random.random() < probability:
        pixels = _whole(pixels.float() * random.uniform(0.5, 1.5))
    if random.random() < probability:
        hue, saturation, value = _hsv(pixels)
        pixels = _rgb(hue, _whole(saturation * random.uniform(0.5, 1.5)).float(), value)
    if random.random() < probability:
        hue, saturation, value = _hsv(pixels)
        pixels = _rgb((hue + random.randint(-18, 17)) % 180, saturation, value)
    if contrast_last and random.random() < probability:
        pixels = _whole(pixels.float() * random.uniform(0.5, 1.5))
    return pixels


def _whole(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)


def _hsv(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue from 0 to 179 and saturation and value from 0 to 255, whole numbers, as OpenCV has them."""
    red, green, blue = values = pixels.float()
    value, low = values.amax(0), values.amin(0)
    spread = value - low
    safe = spread.clamp(min=1e-9)
    hue = 120 + 30 * (red - green) / safe
    hue = torch.where(value == green, 60 + 30 * (blue - red) / safe, hue)
    hue = torch.where(value == red, 30 * (green - blue) / safe, hue)
    hue = torch.where(spread == 0, 0.0, hue).round() % 180
    return hue, (255 * spread / value.clamp(min=1e-9)).round(), value


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    sector = hue / 30
    spread = saturation / 255 * value
    channels = []
    for offset in (5, 3, 1):
        k = (offset + sector) % 6
        channels.append(value - spread * torch.minimum(k, 4 - k).clamp(0, 1))
    return _whole(torch.stack(channels).round())


def collate(images: list[Tensor], targets: list[Any]) -> tuple[Any, Any]:
    """Images of one size as a tensor, others as they are; what does not count has no labels."""
    labels = [
        torch.full(image.shape[1:], IGNORED) if target is None else target
        for image, target in zip(images, targets, strict=True)
    ]
    sizes = {tuple(t.shape) for t in labels} | {tuple(image.shape[1:]) for image in images}
    if len(sizes) == 1:
        return torch.stack(images), torch.stack(labels)
    return Ragged(images, [(t.shape[0], t.shape[1]) for t in labels]), [{"labels": t} for t in labels]
