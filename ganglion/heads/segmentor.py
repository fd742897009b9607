"""Segmentors: a backbone, perhaps a neck, and heads; their losses, and inference over large or rescaled images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.masks import IGNORED
from .layers import Neck
from .pyramid import Pyramid
from .semantic_fpn import SemanticFPNHead
from .upernet import AuxiliaryHead, UperNetHead
from .weight_names import SEGMENTOR, undecayed


class Segmentor(nn.Module):
    """Images -> logits of every class at every pixel.

    num_classes: C. Names of parameters outside the backbone are the published ones, but for the neck's.
    """

    official_names = SEGMENTOR

    def __init__(
        self,
        backbone: Pyramid,
        decode_head: UperNetHead | SemanticFPNHead,
        *,
        num_classes: int,
        neck: Neck | None = None,
        auxiliary_head: AuxiliaryHead | None = None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.backbone: Pyramid = backbone
        self.neck: Neck | None = neck
        self.decode_head: UperNetHead | SemanticFPNHead = decode_head
        self.auxiliary_head = auxiliary_head

    def forward(self, images: Any) -> Any:
        """images: (B, in_chans, H, W), normalised. Returns logits (B, C, H, W).

        A list of images (in_chans, h, w) of sizes of their own gives a list of logits (C, h, w), one after the other.
        """
        if isinstance(images, list):
            return [self(image[None])[0] for image in images]
        return resize_to(self.low_resolution(images), images.shape[2:])

    def undecayed_as_mmdet(self) -> set[str]:
        """The parameters that the rule of the papers, by mmsegmentation's names, does not decay, see `undecayed`."""
        return undecayed(self)

    def low_resolution(self, images: Tensor) -> Tensor:
        """Logits (B, C, ceil(H / 4), ceil(W / 4)), as the head makes them."""
        maps = self.backbone(images)
        return self.decode_head(maps if self.neck is None else self.neck(maps))

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Losses and accuracies under their published names; what is minimised is the sum of those ending in `loss_ce`.

        images: (B, in_chans, H, W). targets: (B, H, W), int64, classes from 0 to C - 1, `IGNORED` for none.

        Raises ValueError for targets of another shape or with other values, which are named.
        """
        check_targets(images, targets, self.num_classes)
        maps = self.backbone(images)
        logits = self.decode_head(maps if self.neck is None else self.neck(maps))
        found = {f"decode.{name}": value for name, value in _losses(logits, targets).items()}
        if self.auxiliary_head is not None:
            aux = _losses(self.auxiliary_head(maps), targets)
            found["aux.loss_ce"] = aux["loss_ce"] * self.auxiliary_head.weight
            found["aux.acc_seg"] = aux["acc_seg"]
        return found


def resize_to(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, C, h, w) -> (B, C, *size), bilinear."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _losses(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross-entropy over all pixels, those ignored count as zeros; accuracy in percent of the others."""
    logits = resize_to(logits.float() if logits.dtype != torch.float64 else logits, targets.shape[1:])
    total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    valid = targets != IGNORED
    right = ((logits.argmax(1) == targets) & valid).sum()
    return {"loss_ce": total / targets.numel(), "acc_seg": 100 * right / valid.sum().clamp(min=1)}


def check_targets(images: Tensor, targets: Tensor, num_classes: int) -> None:
    """Raise ValueError, with what was found, unless the targets are label maps of the images."""
    expected = (images.shape[0], *images.shape[2:])
    if tuple(targets.shape) != expected:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}: expected {expected} for images {tuple(images.shape)}"
        )
    if targets.is_meta or torch.compiler.is_compiling():
        return
    wrong = targets[((targets < 0) | (targets >= num_classes)) & (targets != IGNORED)]
    if wrong.numel():
        raise ValueError(
            f"targets hold the labels {wrong.unique()[:5].tolist()}: expected 0 to {num_classes - 1}, or {IGNORED} for "
            "pixels without a label"
        )


def slide(segmentor: Segmentor, images: Tensor, *, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Logits (B, C, H, W) of images by windows: means where windows overlap.

    crop: height and width of a window. stride: steps between windows, at most the crop. The last window of a row or
    column is moved back inside; an image smaller than the crop is one window.

    Raises ValueError for a stride that leaves gaps.
    """
    return torch.cat(list(slide_bands(segmentor, images, crop=crop, stride=stride)), dim=2)


def slide_bands(
    segmentor: Segmentor, images: Tensor, *, crop: tuple[int, int], stride: tuple[int, int]
) -> Iterator[Tensor]:
    """The logits of `slide` from top to bottom, (B, C, rows, W) each: of a large image, those of one row of windows are
    in memory."""
    for c, s in zip(crop, stride, strict=True):
        if not 0 < s <= c:
            raise ValueError(f"stride {stride}: expected from 1 to the crop {crop}")
    height, width = images.shape[2:]
    total = images.new_zeros(len(images), segmentor.num_classes, min(crop[0], height), width)
    count = images.new_zeros(1, 1, *total.shape[2:])
    tops = _starts(height, crop[0], stride[0])
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        for left in _starts(width, crop[1], stride[1]):
            cols = slice(left, left + crop[1])
            total[..., cols] += segmentor(images[..., top : top + crop[0], cols])
            count[..., cols] += 1
        done = following - top
        yield total[:, :, :done] / count[:, :, :done]
        total, count = (F.pad(x[:, :, done:], (0, 0, 0, done)) for x in (total, count))


def _starts(side: int, crop: int, stride: int) -> list[int]:
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride, side - crop), 0) for i in range(count)]


def at_size(segmentor: Segmentor, images: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, C, *size): of the whole images, resized to their size and then to `size`, as published."""
    return resize_to(segmentor(images), size)


def multi_scale(segmentor: Segmentor, scaled: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Mean of the classes' probabilities (B, C, *size) over rescaled images, each as it is and mirrored.

    scaled: the same images at several scales, (B, in_chans, h_i, w_i). Test-time augmentation as published: of
    probabilities, at the size of the result.
    """
    total: Tensor | float = 0.0
    for images in scaled:
        plain = at_size(segmentor, images, size)
        mirrored = resize_to(segmentor(images.flip(3)).flip(3), size)
        total = total + plain.softmax(1) + mirrored.softmax(1)
    assert isinstance(total, Tensor), "no scale"
    return total / (2 * len(scaled))
