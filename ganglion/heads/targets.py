"""What a detector is trained on, checked."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def check_targets(images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]], num_classes: int) -> None:
    """Raise ValueError, naming image and entry, unless the targets are those of the images."""
    if len(images) != len(targets):
        raise ValueError(f"{len(images)} images and {len(targets)} targets: expected as many")
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        for name in ("boxes", "labels", "masks"):
            if name not in target:
                raise ValueError(f"targets[{i}] has no {name!r}: expected boxes, labels and masks")
        count = len(target["labels"])
        if tuple(target["boxes"].shape) != (count, 4):
            raise ValueError(
                f"targets[{i}]: boxes have shape {tuple(target['boxes'].shape)}, expected ({count}, 4) for "
                f"{count} labels"
            )
        if target["masks"].ndim != 3 or len(target["masks"]) != count:
            raise ValueError(
                f"targets[{i}]: masks have shape {tuple(target['masks'].shape)}, expected ({count}, "
                f"{image.shape[1]}, {image.shape[2]})"
            )
        if count:
            low, high = int(target["labels"].min()), int(target["labels"].max())
            if low < 0 or high >= num_classes:
                raise ValueError(
                    f"targets[{i}]: labels from {low} to {high}, expected 0 to {num_classes - 1}"
                )
            empty = (target["boxes"][:, 2:] <= target["boxes"][:, :2]).any(1).nonzero()[:, 0]
            if len(empty):
                box = [round(v, 2) for v in target["boxes"][empty[0]].tolist()]
                raise ValueError(
                    f"targets[{i}]: box {int(empty[0])} is {box}, expected x0, y0, x1, y1 with x1 > x0 and y1 > y0 "
                    "(not x, y, width, height)"
                )
