"""Boxes as Mask R-CNN is published with them: anchors, deltas, overlaps, which box is meant by which object.

Boxes are (..., 4): x0, y0, x1, y1 in pixels of the image as the network sees it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

#: Largest change of a side that a delta can mean, as a logarithm, in either direction.
_MAX_LOG = math.log(1000 / 16)


def anchors(
    sizes: Sequence[Sequence[int]],
    strides: Sequence[int],
    scale: float,
    ratios: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Anchors of each level, (h * w * len(ratios), 4): rows, columns, ratio. Their shapes are made in float32.

    sizes: (h, w) of each level's map. scale: side of an anchor in strides. ratios: height over width.
    """
    ratio = torch.tensor(ratios, dtype=torch.float32).sqrt()
    made = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        half_w, half_h = 0.5 * (stride * (1 / ratio) * scale), 0.5 * (stride * ratio * scale)
        base = torch.stack([-half_w, -half_h, half_w, half_h], dim=1)
        x, y = (torch.arange(n, dtype=dtype) * stride for n in (width, height))
        corner_y, corner_x = torch.meshgrid(y, x, indexing="ij")
        corners = torch.stack([corner_x, corner_y, corner_x, corner_y], dim=-1)
        made.append((corners[:, :, None] + base).reshape(-1, 4))
    return made


def cells_inside(
    sizes: Sequence[Sequence[int]], strides: Sequence[int], extent: Sequence[int], per_cell: int
) -> Tensor:
    """Which anchors of all levels belong to cells that begin inside `extent` (height, width). (anchors,), bool."""
    flags = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = torch.arange(height) * stride < extent[0], torch.arange(width) * stride < extent[1]
        flags.append((y[:, None] & x).reshape(-1, 1).expand(-1, per_cell).reshape(-1))
    return torch.cat(flags)


def decode(boxes: Tensor, deltas: Tensor, stds: Sequence[float]) -> Tensor:
    """Boxes moved and scaled by deltas (dx, dy, dw, dh) / stds; both (..., 4)."""
    d = deltas * deltas.new_tensor(stds)
    centre, side = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    centre = centre + side * d[..., :2]
    half = side * d[..., 2:].clamp(-_MAX_LOG, _MAX_LOG).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def encode(boxes: Tensor, targets: Tensor, stds: Sequence[float]) -> Tensor:
    """The deltas that `decode` turns into `targets`; all (..., 4), made in float32 as the published detectors' are."""
    boxes, targets = boxes.float(), targets.float()
    side, target_side = boxes[..., 2:] - boxes[..., :2], targets[..., 2:] - targets[..., :2]
    centre, target_centre = ((t[..., :2] + t[..., 2:]) * 0.5 for t in (boxes, targets))
    shift = (target_centre - centre) / side
    return torch.cat([shift, (target_side / side).log()], dim=-1) / boxes.new_tensor(stds)


def clip(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes cut to an image of (height, width)."""
    height, width = size
    return torch.stack(
        [boxes[..., 0].clamp(0, width), boxes[..., 1].clamp(0, height),
         boxes[..., 2].clamp(0, width), boxes[..., 3].clamp(0, height)], dim=-1
    )  # fmt: skip


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (A, 4) with boxes (B, 4): (A, B); 0 where both are empty."""
    side = (torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])).clamp(min=0)
    inter = side.prod(-1)
    area_a, area_b = ((t[:, 2:] - t[:, :2]).prod(-1) for t in (a, b))
    return inter / (area_a[:, None] + area_b - inter).clamp(min=1e-6)


def assign(
    boxes: Tensor, objects: Tensor, *, negative_below: float, positive_from: float, low_quality_from: float
) -> Tensor:
    """The object that each box stands for: its index from 1 on, 0 for none, -1 for boxes that do not count.

    boxes: (n, 4). objects: (m, 4). A box is negative if its best overlap is below `negative_below` and positive from
    `positive_from` on. Then, object by object, every box whose overlap with it is the object's best, and at least
    `low_quality_from`, is given to it; later objects take from earlier ones.
    """
    if not len(objects) or not len(boxes):
        return torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
    iou = overlaps(objects, boxes)
    best, index = iou.max(0)
    found = torch.full_like(index, -1)
    found[best < negative_below] = 0
    found = torch.where(best >= positive_from, index + 1, found)
    for i, top in enumerate(iou.max(1).values.tolist()):
        if top >= low_quality_from:
            found[iou[i] == iou[i].max()] = i + 1
    return found


def choose(indices: Tensor, count: int) -> Tensor:
    """`count` of the indices at random, or all if they are not more, in ascending order."""
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]].sort().values


def sample(assigned: Tensor, count: int, positives: float) -> tuple[Tensor, Tensor]:
    """Indices of positive and of negative boxes, `count` in all if there are as many, of them at most the fraction
    `positives` positive."""
    positive = choose((assigned > 0).nonzero()[:, 0], int(count * positives))
    negative = choose((assigned == 0).nonzero()[:, 0], count - len(positive))
    return positive, negative


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression within each group: indices of what is kept, best first."""
    kept = torch.zeros_like(groups, dtype=torch.bool)
    for group in groups.unique().tolist():
        inside = (groups == group).nonzero()[:, 0]
        kept[inside[nms(boxes[inside], scores[inside], threshold)]] = True
    index = kept.nonzero()[:, 0]
    return index[scores[index].argsort(descending=True, stable=True)]
