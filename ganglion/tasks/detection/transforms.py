"""From an image and its COCO annotations to what a detector is given, as published (mmdetection's configurations)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import check_literals, check_positive, check_range
from ...data import Ragged
from ...data.decode import Raw
from ..pixels import Normalise, new_size, resize, to_pixels
from .rle import bitmap

#: Of the DETR-style scales: the short sides before a crop, and the range of the crop's sides.
_BEFORE_CROP = (400, 500, 600)
_CROP = (384, 600)


@dataclass(frozen=True, kw_only=True)
class DetectionAugmentation:
    """Augmentation of training images.

    Args:
        scales: "one": every image is resized as in evaluation (the papers' 1x schedule). "detr": with probability 1/2
            to one of `short_sides`, else to 400, 500 or 600, then a crop with sides from 384 to 600, then to one of
            `short_sides` (their 3x schedule).
        short_sides: of "detr", in pixels.
        hflip: probability of a horizontal flip.
    """

    scales: Literal["one", "detr"] = "one"
    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    hflip: float = 0.5

    def __post_init__(self) -> None:
        check_literals(self)
        check_positive(self, "short_sides")
        check_range("data.augmentation.hflip", self.hflip, 0, 1)


class Resize:
    """Evaluation: the image resized and normalised. A target gets nothing but what it had.

    data_config: with input_size (channels, short, long side), mean and std of values from 0 to 1.
    """

    def __init__(self, data_config: dict[str, Any]):
        _, short_side, long_side = data_config["input_size"]
        self.short_side: int = short_side
        self.long_side: int = long_side
        self.normalise: Normalise = Normalise(data_config)

    def __call__(self, image: Raw, target: Any) -> tuple[Tensor, Any]:
        pixels = to_pixels(image)
        size = new_size(pixels.shape[1:], self.long_side, self.short_side)
        return self.normalise(resize(pixels, size)), target


class Augment(Resize):
    """Training: image and objects resized, cropped, flipped and normalised together.

    A target becomes boxes (m, 4) x0, y0, x1, y1, labels (m,) and masks (m, h, w) uint8; m may be 0. No crowds.
    """

    def __init__(self, data_config: dict[str, Any], augmentation: DetectionAugmentation):
        super().__init__(data_config)
        self.augmentation = augmentation

    def __call__(self, image: Raw, target: Any) -> tuple[Tensor, Any]:
        pixels = to_pixels(image)
        if target is None:
            return super().__call__(image, None)
        flips = random.random() < self.augmentation.hflip
        scene = objects_of(pixels, target)
        if self.augmentation.scales == "one":
            scene = scaled(scene, self.long_side, self.short_side)
            scene = flipped(scene) if flips else scene
        else:
            scene = flipped(scene) if flips else scene
            if random.random() < 0.5:
                scene = scaled(scene, self.long_side, random.choice(_BEFORE_CROP))
                scene = cropped(scene)
            scene = scaled(scene, self.long_side, random.choice(self.augmentation.short_sides))
        return self.normalise(scene.pop("pixels")), scene


Scene = dict[str, Tensor]


def objects_of(pixels: Tensor, target: dict[str, Any]) -> Scene:
    """pixels, and boxes, labels and masks of what is no crowd, in the frame of the file."""
    height, width = target["size"]
    wanted = [a for a in target["annotations"] if not a["iscrowd"]]
    boxes = torch.tensor([a["bbox"] for a in wanted], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [torch.from_numpy(bitmap(a["segmentation"], height, width)) for a in wanted]
    return {
        "pixels": pixels,
        "boxes": boxes,
        "labels": torch.tensor([a["label"] for a in wanted], dtype=torch.long),
        "masks": torch.stack(masks) if masks else torch.zeros((0, height, width), dtype=torch.uint8),
    }


def scaled(scene: Scene, long_side: int, short_side: int) -> Scene:
    """Boxes by the two true ratios, clipped; masks to the nearest pixel."""
    height, width = scene["pixels"].shape[1:]
    new = new_size((height, width), long_side, short_side)
    boxes = scene["boxes"] * torch.tensor([new[1] / width, new[0] / height] * 2)
    masks = scene["masks"]
    masks = F.interpolate(masks[None], new, mode="nearest")[0] if len(masks) else masks.new_zeros((0, *new))
    return scene | {"pixels": resize(scene["pixels"], new), "boxes": clipped(boxes, new), "masks": masks}


def flipped(scene: Scene) -> Scene:
    """Left and right swapped."""
    width = scene["pixels"].shape[2]
    boxes = scene["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1]) + torch.tensor(
        [width, 0.0, width, 0]
    )
    return scene | {"pixels": scene["pixels"].flip(2), "boxes": boxes, "masks": scene["masks"].flip(2)}


def cropped(scene: Scene) -> Scene:
    """A random part; objects keep their place in it, or are left out where nothing of their box is in it."""
    height, width = scene["pixels"].shape[1:]
    new = [random.randint(min(_CROP[0], side), min(_CROP[1], side)) for side in (height, width)]
    top, left = random.randint(0, height - new[0]), random.randint(0, width - new[1])
    boxes = clipped(scene["boxes"] - torch.tensor([left, top] * 2), new)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return {
        "pixels": scene["pixels"][:, top : top + new[0], left : left + new[1]],
        "boxes": boxes[kept],
        "labels": scene["labels"][kept],
        "masks": scene["masks"][kept, top : top + new[0], left : left + new[1]],
    }


def clipped(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes within an image (height, width)."""
    limit = torch.tensor([size[1], size[0]] * 2, dtype=boxes.dtype)
    return boxes.clamp(min=0).minimum(limit)


def collate(images: list[Tensor], targets: list[Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Images of sizes of their own; what does not count has an empty target."""
    found = [{} if target is None else target for target in targets]
    own = [(image.shape[1], image.shape[2]) for image in images]
    sizes = [target.get("size", size) for target, size in zip(found, own, strict=True)]
    return Ragged(images, sizes), found
