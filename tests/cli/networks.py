"""Small networks and pictures for the verbs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

import ganglion  # noqa: F401 - registers the networks

NAMES = ["ant", "bee", "crab"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SIZE, CROP_PCT = 40, 0.8


def network(classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    made = timm.create_model("test_vmamba", num_classes=classes)
    # Logits that differ from picture to picture.
    torch.nn.init.normal_(made.get_classifier().weight, std=1.0)
    return made.eval()


def export(folder: Path, names: list[str] | None = NAMES, made: torch.nn.Module | None = None) -> Path:
    """An exported network, with preprocessing that is not ImageNet's."""
    data_config = {"input_size": (3, SIZE, SIZE), "mean": MEAN, "std": STD, "crop_pct": CROP_PCT}
    config = {"label_names": names} if names else {}
    made = made or network(len(names or NAMES))
    save_for_hf(made, folder, config, safe_serialization=True, data_config=data_config)
    return folder


def picture(path: Path, seed: int, size: tuple[int, int] = (60, 52)) -> Path:
    """A picture of large random patches."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    patches.resize(size, Image.Resampling.NEAREST).save(path)
    return path


def preprocess(path: Path, size: int = SIZE, crop_pct: float = CROP_PCT) -> torch.Tensor:
    """(1, 3, size, size): shorter side to int(size / crop_pct), bicubic; the centre; normalised. By hand."""
    image = Image.open(path).convert("RGB")
    scale = int(size / crop_pct) / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    normal = (pixels - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(normal).permute(2, 0, 1)[None].float()
