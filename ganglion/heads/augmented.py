"""A detector on the same image at several scales and mirrored: test-time augmentation (He et al. 2017, appendix)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import boxes as B
from . import masks as M
from .mask_rcnn import MaskRCNN


def detect_multi_scale(
    detector: MaskRCNN, scaled: Sequence[Tensor], size: Sequence[int], *, mirrored: bool = True
) -> dict[str, Tensor]:
    """The objects in one image: boxes (n, 4), scores, labels and masks (n, height, width), best first.

    scaled: the image (in_chans, h_i, w_i) at several scales, each of which is read as it is and, if `mirrored`, left to
    right. size: (height, width) of the frame of the result.

    The boxes of all versions go through one suppression; the mask of a box that is left is the mean of its
    probabilities in all versions.

    Raises ValueError without a scale.
    """
    if not scaled:
        raise ValueError("no scale: expected the image at one at least")
    config, found, versions = detector.config, [], []
    for image in scaled:
        for flip in (False, True) if mirrored else (False,):
            batch, (extent,) = detector.batch([image.flip(2) if flip else image])
            maps, logits, deltas = detector.dense(batch)
            ((proposals, _),) = detector.propose(logits, deltas, [extent], config.proposals_before_nms)
            boxes, scores, labels = detector.detect_boxes(maps[:-1], proposals, extent)
            found.append((_moved(boxes, extent, size, flip), scores, labels))
            versions.append((maps[:-1], extent, flip))
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = B.suppress(boxes, scores, labels, config.nms_threshold)[: config.detections]
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    total = torch.zeros(len(boxes), 28, 28, dtype=boxes.dtype, device=boxes.device)
    for maps, extent, flip in versions:
        # `_moved` from the frame of the result into that of the version: a flip is its own inverse.
        own = _moved(boxes, size, extent, flip)
        probabilities = detector.mask_logits(maps, own, labels).sigmoid()
        total = total + (probabilities.flip(2) if flip else probabilities)
    masks = M.paste(total / len(versions), boxes, size)
    return {"boxes": boxes, "scores": scores, "labels": labels, "masks": masks}


def _moved(boxes: Tensor, frame: Sequence[int], to: Sequence[int], flip: bool) -> Tensor:
    """Boxes of an image (height, width) in another size of it, mirrored or not."""
    if flip:
        boxes = torch.stack([frame[1] - boxes[:, 2], boxes[:, 1], frame[1] - boxes[:, 0], boxes[:, 3]], dim=1)
    return boxes * boxes.new_tensor([to[1] / frame[1], to[0] / frame[0]]).repeat(2)
