"""Small runs of `ganglion fit`, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ganglion.tasks import fit
from ganglion.tasks.classification import training as classification

ROOT = Path(__file__).parents[2]
CLASSES = 4


def write_data(folder: Path, train: int = 44, test: int = 13, side: int = 32, seed: int = 0) -> Path:
    """Images of CLASSES colours in noise, as npz arrays."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", train), ("test", test)):
        labels = np.arange(n) % CLASSES
        images = rng.integers(0, 120, (n, side, side, 3))
        images[..., 0] += 30 * labels[:, None, None]
        np.savez(folder / f"colours_{split}.npz", images=images.astype(np.uint8), labels=labels)
    return folder


def arguments(data: Path, output: Path, **options: object) -> list[str]:
    """The words after `ganglion fit`: four epochs of a tiny network, with everything that draws random numbers."""
    chosen = {
        "model.name": "test_vmamba",
        "model.drop_path_rate": 0.3,
        "model.drop_rate": 0.1,
        "model.mixing": "{mixup: 0.8, cutmix: 1.0}",
        "model.label_smoothing": 0.1,
        "data.root": data,
        "data.val_split": "test",
        "data.batch_size": 8,
        "data.workers": 0,
        "data.img_size": 32,
        "data.augmentation": "{crop: rrc, auto_augment: rand-m9-mstd0.5-inc1, re_prob: 0.5}",
        "schedule.warmup_epochs": 1,
        "ema.decay": 0.9,
        "checkpoint.every_n_steps": 2,
        "trainer.max_epochs": 4,
        "trainer.accelerator": "cpu",
        "trainer.gradient_clip_val": 1.0,
        "trainer.log_every_n_steps": 1,
        "output": output,
    } | {key.replace("__", "."): value for key, value in options.items()}
    return [f"--{key}={value}" for key, value in chosen.items()]


def read_last(output: Path) -> dict:
    """The newest checkpoint of a run."""
    return torch.load(max((output / "checkpoints").glob("step-*.ckpt")), weights_only=True)


def differences(a: object, b: object, where: str = "") -> list[str]:
    """Where two nested values differ in a bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a.view(-1).contiguous(), b.view(-1).contiguous())
        return [] if same else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        missing = [f"{where}.{key}" for key in a.keys() ^ b.keys()]
        return missing + [
            d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{where}.{key}")
        ]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [where]
        return [
            d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}[{i}]")
        ]
    return [] if a == b else [f"{where}: {a!r} != {b!r}"]


class Crash(BaseException):
    """Ends a run on the spot, as kill -9 does: nothing in the way saves anything."""


def run(monkeypatch, argv: list[str], crash_at: int | None = None, *, main=fit.main) -> list[float]:
    """Run `ganglion fit`; returns the loss of every step. `crash_at`: die in the step of that number. main: the
    command's writes a card, too."""
    losses: list[float] = []
    compute = classification.Classification.loss

    def loss(self, batch):
        if crash_at is not None and len(losses) == crash_at:
            raise Crash
        value = compute(self, batch)
        losses.append(value.item())
        return value

    monkeypatch.setattr(classification.Classification, "loss", loss)
    try:
        assert main(argv) == 0
    except Crash:
        pass
    finally:
        monkeypatch.setattr(classification.Classification, "loss", compute)
    return losses


#: Nothing random, nothing averaged: for tests of what a run does, not of what it draws. Five steps an epoch.
PLAIN = {
    "model__drop_path_rate": 0,
    "model__drop_rate": 0,
    "model__mixing": "{mixup: 0}",
    "data__augmentation": "{crop: pad}",
    "ema__decay": 0,
    "checkpoint__every_n_steps": "null",
    "trainer__max_epochs": 2,
}


def tree(folder: Path) -> dict[str, bytes]:
    """What is in a folder, file by file."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def timeless(output: Path) -> list[str]:
    """The rows of log.csv without what depends on the clock and the machine."""
    return [",".join(line.split(",")[:7]) for line in (output / "log.csv").read_text().splitlines()]


def error(argv: list[str], capsys) -> str:
    """What a run that must fail says: one line, no traceback."""
    assert fit.main(argv) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("ganglion fit: error: ") and "Traceback" not in captured
    return captured
