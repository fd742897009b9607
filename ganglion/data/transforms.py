"""What happens to an image between its file and its batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean as average
from typing import Any, Literal, overload

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import (
    AugmentOp,
    augment_and_mix_transform,
    auto_augment_transform,
    posterize,
    rand_augment_transform,
)
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import v2 as T
from torchvision.transforms.v2 import functional as F

from ..config import check_literals, check_range
from ..errors import unknown
from .decode import MAX_PIXELS, MODES, Raw
from .types import DataError

#: Takes and gives both, so that what moves a pixel can move a box with it. The target of an image that does not
#: count is None.
Transform = Callable[[Raw, Any], tuple[torch.Tensor, Any]]

#: How much longer than narrow an image is left that was too long.
_LONGEST = 16

#: timm's policies, and the letters of their settings, each followed by a number.
_POLICIES = {
    "rand": "m|n|p|mstd|mmax|inc",
    "augmix": "m|w|d|a|b|mstd",
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), "mstd"),
}

#: Sets of transforms that "rand" may choose from, as settings of it.
_SETS = ("tweights", "t3a", "t3aw")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augmentation of training images, by timm's transforms.

    Args:
        crop: how the crop is chosen: timm's random resized crop and its relatives, or "pad": zeros around the image,
            then a crop of the full size, as is common for images of 32 pixels.
        pad: pixels around the image, for crop "pad".
        scale: range of the crop's fraction of the area.
        ratio: range of the crop's aspect ratio.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        color_jitter: strength of changes in brightness, contrast and saturation; without effect with `auto_augment`.
        auto_augment: timm's policy: rand, augmix, original, originalr, v0, v0r or 3a, with its settings, e.g.
            rand-m9-mstd0.5-inc1. null: none.
        interpolation: of the resized crop.
        re_prob: probability of random erasing.
        re_mode: what erased pixels become: black, one random colour, a random colour each.
        re_count: the most rectangles that are erased.
    """

    crop: Literal["rrc", "rkrc", "rkrr", "pad"] = "rrc"
    pad: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float | None = None
    auto_augment: str | None = None
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    re_prob: float = 0.0
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    re_count: int = 1

    def __post_init__(self) -> None:
        check_literals(self)
        for name in ("hflip", "vflip", "re_prob"):
            check_range(f"Augmentation.{name}", getattr(self, name), 0, 1)
        check_range("Augmentation.pad", self.pad, 0)
        check_range("Augmentation.color_jitter", self.color_jitter, 0)
        check_range("Augmentation.re_count", self.re_count, 1)
        check_range("Augmentation.scale", self.scale, above=0, high=1)
        check_range("Augmentation.ratio", self.ratio, above=0)
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"Augmentation.{name} is {[low, high]}: expected the smaller number first")
        if self.auto_augment is not None:
            _check_policy(self.auto_augment)


class ImageTransform:
    """A transform that changes the image alone, called like torchvision's: `transform(image)` gives the image,
    `transform(image, target)` both."""

    def __init__(self, transform: Callable[[Raw], torch.Tensor]):
        self.transform = transform

    @overload
    def __call__(self, image: Raw, /) -> torch.Tensor: ...

    @overload
    def __call__(self, image: Raw, target: Any, /) -> tuple[torch.Tensor, Any]: ...

    def __call__(self, image: Raw, /, *target: Any) -> torch.Tensor | tuple[torch.Tensor, Any]:
        changed = self.transform(image)
        return (changed, *target) if target else changed


def train_transform(augmentation: Augmentation, data_config: dict[str, Any]) -> ImageTransform:
    """Training transform: image -> (C, H, W) float32, normalised. data_config: as timm resolves it.

    Mean and std count for every channel; where their number is another, all channels get their average.

    Raises DataError for changes of colour where the channels are no colours, and for policies over transparency.
    """
    a, (channels, height, width) = augmentation, data_config["input_size"]
    mean, std = _statistics(data_config)
    color_jitter: Any = a.color_jitter  # None, too
    if channels not in MODES and (a.auto_augment or a.color_jitter):
        raise DataError(
            f"augmentation: auto_augment and color_jitter need 1, 3 or 4 channels, these images have {channels}"
        )
    if channels == 4 and a.auto_augment:
        raise DataError("augmentation: auto_augment needs 1 or 3 channels, not the 4 with transparency")
    if channels in MODES and a.crop != "pad":
        transform: Any = create_transform(
            (channels, height, width),
            is_training=True,
            train_crop_mode=a.crop,
            scale=a.scale,
            ratio=a.ratio,
            hflip=a.hflip,
            vflip=a.vflip,
            color_jitter=color_jitter,
            auto_augment=a.auto_augment,
            interpolation=a.interpolation,
            mean=mean,
            std=std,
            re_prob=a.re_prob,
            re_mode=a.re_mode,
            re_count=a.re_count,
        )
        if a.crop in ("rkrc", "rkrr"):  # which resize the whole image
            transform.transforms.insert(0, _NotTooLong(max(height, width)))
        return _keep_a_bit(transform)

    steps: list[Any] = [*_geometry(a, height, width), *_colours(a, min(height, width), mean)]
    steps += _to_tensor(mean, std)
    if a.re_prob:
        steps.append(RandomErasing(a.re_prob, mode=a.re_mode, max_count=a.re_count, device="cpu"))
    return _keep_a_bit(T.Compose(steps))


def eval_transform(data_config: dict[str, Any], size: int | None = None) -> ImageTransform:
    """Evaluation transform: resize to size / crop_pct, cut the centre out, normalise.

    size: another side than the data_config's, with the same crop_pct. Mean and std as in `train_transform`.
    """
    channels, *side = data_config["input_size"]
    height, width = (size, size) if size is not None else side
    mean, std = _statistics(data_config)
    crop_pct = data_config["crop_pct"]
    not_too_long = _NotTooLong(max(height, width) / crop_pct)
    if channels in MODES:
        transform: Any = create_transform(
            (channels, height, width),
            interpolation=data_config["interpolation"],
            mean=mean,
            std=std,
            crop_pct=crop_pct,
            crop_mode=data_config.get("crop_mode"),
        )
        if data_config.get("crop_mode") in (None, "center"):
            transform.transforms.insert(0, not_too_long)
        return ImageTransform(transform)
    resized = [int(length / crop_pct) for length in (height, width)]
    mode = T.InterpolationMode(data_config["interpolation"])
    resize = T.Resize(resized[0] if height == width else resized, mode, antialias=True)
    return ImageTransform(
        T.Compose([not_too_long, resize, T.CenterCrop((height, width)), *_to_tensor(mean, std)])
    )


class _NotTooLong:
    """Leaves out the ends of images so long and narrow that, resized whole, they would take gigabytes: a file of a
    kilobyte may hold one pixel by a million, and makes 256 by 256 million. All other images are as they were.

    side: of the resized image, the shorter one, in pixels.
    """

    def __init__(self, side: float):
        self._side = side

    def __call__(self, image: Raw) -> Raw:
        width, height = image.size if isinstance(image, Image.Image) else image.shape[:0:-1]
        narrow, most = min(width, height), MAX_PIXELS / self._side**2  # times as long as narrow
        if max(width, height) <= most * narrow:
            return image
        kept = max(1, int(_LONGEST * narrow))
        crop: Any = F.center_crop
        return crop(image, [min(height, kept), min(width, kept)])


def _geometry(a: Augmentation, height: int, width: int) -> list[Any]:
    if a.crop == "pad":
        crop: Any = T.RandomCrop((height, width), padding=a.pad, pad_if_needed=True)
    else:
        crop = T.RandomResizedCrop((height, width), a.scale, a.ratio, antialias=True)
    return [crop, T.RandomHorizontalFlip(a.hflip), T.RandomVerticalFlip(a.vflip)]


def _colours(a: Augmentation, side: int, mean: tuple[float, ...]) -> list[Any]:
    if a.auto_augment is not None:
        fill = {"translate_const": round(0.45 * side), "img_mean": tuple(round(255 * m) for m in mean)}
        return [_policy(a.auto_augment, fill)]
    return [T.ColorJitter(*[a.color_jitter] * 3)] if a.color_jitter else []


def _policy(policy: str, fill: dict[str, Any]) -> Any:
    makers = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    make: Any = makers.get(policy.partition("-")[0], auto_augment_transform)
    return make(policy, fill)


def _check_policy(policy: str) -> None:
    """Raise ValueError for a policy that timm does not know, or a setting of which it would say nothing."""
    name, *settings = policy.split("-")
    wrong = f"Augmentation.auto_augment is {policy!r}: "
    if name not in _POLICIES:
        raise ValueError(
            wrong + unknown("policy", name, _POLICIES) + " With settings for example rand-m9-inc1"
        )
    letters, sets = _POLICIES[name], _SETS if name == "rand" else ()
    for setting in settings:
        if setting not in sets and not re.fullmatch(rf"({letters})(\d+\.?\d*)", setting):
            raise ValueError(
                f"{wrong}unknown setting {setting!r}. Expected settings of {name} with their numbers: "
                + ", ".join((*letters.split("|"), *(f"or just {named}" for named in sets)))
            )
    try:
        _policy(policy, {})
    except Exception as error:  # timm's assertions, and numbers that are not whole
        raise ValueError(f"{wrong}{error}") from error


def _statistics(data_config: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of every channel: the average of those given, where their number is another."""
    channels = data_config["input_size"][0]
    return per_channel(data_config["mean"], channels), per_channel(data_config["std"], channels)


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value for every channel: the average of those given, where their number is another."""
    return tuple(values) if len(values) == channels else (average(values),) * channels


def _to_tensor(mean: tuple[float, ...], std: tuple[float, ...]) -> list[Any]:
    return [T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(mean, std), T.ToPureTensor()]


def _keep_a_bit(transform: Any) -> ImageTransform:
    """Stop timm's posterization at one bit: at full strength it asks for none, which Pillow refuses."""
    for step in transform.transforms:
        policy = [op for ops in getattr(step, "policy", ()) for op in ops]
        for op in (*getattr(step, "ops", ()), *policy):
            if isinstance(op, AugmentOp) and op.aug_fn is posterize:
                op.aug_fn = _posterize
    return ImageTransform(transform)


def _posterize(image: Image.Image, bits: int, **kwargs: Any) -> Image.Image:
    return posterize(image, max(1, bits), **kwargs)
