"""What lies inside boxes: features of regions, masks cut out of images and put back into them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

#: Side of the boxes that are read from the finest level, and of which the next ones take doubles.
_FINEST = 56


def levels(boxes: Tensor, count: int) -> Tensor:
    """The level of each box (n, 4), from 0 to count - 1: boxes below 112 pixels belong to the first."""
    side = (boxes[:, 2:] - boxes[:, :2]).prod(-1).clamp(min=0).sqrt()
    return torch.floor(torch.log2(side / _FINEST + 1e-6)).clamp(0, count - 1).long()


def region_features(
    maps: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], side: int
) -> Tensor:
    """Features (n, C, side, side) of the boxes of all images, image after image, each from the level of its size.

    maps: of each level, (B, C, h, w). boxes: of each image, (n_i, 4), in whose precision the features are read.
    """
    every = torch.cat(list(boxes))
    image = torch.cat(
        [torch.full((len(b), 1), float(i), dtype=b.dtype, device=b.device) for i, b in enumerate(boxes)]
    )
    rois, level = torch.cat([image, every], dim=1), levels(every, len(maps))
    out = rois.new_zeros(len(rois), maps[0].shape[1], side, side)
    for i, (m, stride) in enumerate(zip(maps, strides, strict=True)):
        inside = (level == i).nonzero()[:, 0]
        part = roi_align(m.to(rois.dtype), rois[inside], side, 1 / stride, sampling_ratio=0, aligned=True)
        out = out.index_copy(0, inside, part)
    return out


def mask_targets(masks: Tensor, indices: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Of each box (n, 4) the mask (m, H, W) of its index (n,), in side x side cells: 0 or 1, (n, side, side)."""
    rois = torch.cat([indices[:, None].to(boxes.dtype), boxes], dim=1)
    found = roi_align(masks[:, None].to(boxes.dtype), rois, side, 1.0, sampling_ratio=0, aligned=True)
    return (found[:, 0] >= 0.5).to(boxes.dtype)


def paste(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (n, side, side) of probabilities at their boxes in images of (height, width): (n, height, width), bool.

    Bilinear at the pixels' centres, true from 0.5 on. Only pixels near the box are computed.
    """
    height, width = size
    out = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        left, top = max(math.floor(x0) - 1, 0), max(math.floor(y0) - 1, 0)
        right, bottom = min(math.ceil(x1) + 1, width), min(math.ceil(y1) + 1, height)
        if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
            continue
        box = boxes[i].to(masks.dtype)
        x, y = (
            (torch.arange(a, b, device=masks.device, dtype=masks.dtype) + 0.5 - box[k])
            / (box[k + 2] - box[k])
            * 2
            - 1
            for k, a, b in ((0, left, right), (1, top, bottom))
        )
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        found = F.grid_sample(masks[i, None, None], grid[None], align_corners=False)
        out[i, top:bottom, left:right] = found[0, 0] >= 0.5
    return out
