"""A COCO-style set of a few pictures with bright rectangles, and the words of a tiny run on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganglion.tasks.detection import rle

#: Ids of the two classes, with a gap.
IDS = (3, 8)


def write(folder: Path, train: int = 6, val: int = 3) -> Path:
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train2017", train), ("val2017", val)):
        (folder / split).mkdir()
        images, objects = [], []
        for i in range(count):
            height, width = (48, 64) if i % 2 else (61, 45)
            pixels = rng.integers(0, 90, (height, width, 3)).astype(np.uint8)
            images.append({"id": 7 * i, "file_name": f"{i}.png", "height": height, "width": width})
            for k, category in enumerate(IDS):
                x, y, w, h = 4 + 18 * k, 6 + 5 * k, 14, 20
                pixels[y : y + h, x : x + w, k] = 250
                polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                objects.append(
                    {
                        "id": len(objects) + 1,
                        "image_id": 7 * i,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": polygon,
                    }
                )
            Image.fromarray(pixels).save(folder / split / f"{i}.png")
        categories = [{"id": i, "name": name} for i, name in zip(IDS, ("red", "green"), strict=True)]
        content = {"images": images, "annotations": objects, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def arguments(data: Path, output: Path, **options: object) -> list[str]:
    """The words after `ganglion fit`: two epochs of three steps, with everything that draws random numbers."""
    chosen = {
        "task": "detection",
        "model.backbone": "test_vmamba",
        "model.drop_path_rate": 0.2,
        "model.config": "{channels: 8, box_channels: 16, anchor_scale: 4, proposals: 20, box_samples: 16}",
        "data.root": data,
        "data.workers": 0,
        "data.long_side": 64,
        "data.short_side": 48,
        "schedule.warmup_epochs": 0,
        "ema.decay": 0.9,
        "checkpoint.every_n_steps": 1,
        "trainer.max_epochs": 2,
        "trainer.accelerator": "cpu",
        "output": output,
    } | {key.replace("__", "."): value for key, value in options.items()}
    return [f"--{key}={value}" for key, value in chosen.items()]


def scene(seed: int):
    """Five images with objects, crowds and detections near them."""
    rng = np.random.default_rng(seed)
    outputs, targets = [], []
    for key in range(5):
        objects, boxes, masks, labels = [], [], [], []
        for _ in range(int(rng.integers(1, 6))):
            x, y = rng.integers(0, 60, 2).tolist()
            w, h = rng.integers(6, 60, 2).tolist()
            label = int(rng.integers(0, 3))
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            crowd = int(rng.random() < 0.2)
            shape = rle.encoded(polygon, 128, 128) if crowd else polygon
            objects.append(
                {"bbox": [x, y, w, h], "label": label, "iscrowd": crowd, "area": w * h, "segmentation": shape}
            )
            for _ in range(2):
                dx, dy = rng.integers(-4, 5, 2).tolist()
                left, top = max(0, x + dx), max(0, y + dy)
                boxes.append([left, top, left + w, top + h])
                mask = np.zeros((128, 128), bool)
                mask[top : top + h, left : left + w] = True
                masks.append(mask)
                labels.append(label if rng.random() < 0.8 else 2 - label)
        outputs.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float64),
                "scores": torch.from_numpy(rng.random(len(boxes))),
                "labels": torch.tensor(labels),
                "masks": torch.from_numpy(np.stack(masks)),
            }
        )
        targets.append({"image_id": 10 - key, "size": (128, 128), "annotations": objects})
    return outputs, targets
