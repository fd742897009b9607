"""Streets as coloured rectangles with their label maps, and a run on them of a second or two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ["sky", "road", "car"]


def write(root: Path, split: str, count: int, size: tuple[int, int] = (40, 48)) -> None:
    """images/SPLIT and masks/SPLIT with as many pairs, and classes.txt."""
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(split))
    for i in range(count):
        labels = np.zeros(size, np.uint8)
        labels[size[0] // 2 :] = 1
        labels[-8:, 4 + i : 20 + i] = 2
        image = np.array([[80, 120, 250], [90, 90, 90], [250, 40, 40]], np.uint8)[labels]
        image = np.clip(image + rng.integers(-20, 20, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / split / f"{i}.png")
        Image.fromarray(labels).save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")


def whole(root: Path) -> Path:
    """Six images to train, three to validate."""
    write(root, "train", 6)
    write(root, "val", 3)
    return root


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    """Of `ganglion.tasks.fit.main`: two epochs of three steps."""
    return [
        "--task", "segmentation", "--data.root", str(data), "--output", str(output),
        "--model.backbone", "test_vmamba", "--model.name", "semantic_fpn",
        "--model.config", "{neck_channels: 8, channels: 8}", "--data.batch_size", "2", "--data.workers", "0",
        "--data.long_side", "64", "--data.short_side", "48", "--data.augmentation.crop", "48",
        "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--schedule.warmup_epochs", "0",
        "--optimizer.lr", "0.003", "--model.drop_path_rate", "0.1", "--ema.decay", "0.5",
        "--checkpoint.every_n_steps", "2", *more,
    ]  # fmt: skip
