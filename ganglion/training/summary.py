"""What a run says before it begins and after it has ended, at most 80 columns wide."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from ..errors import shown

_WIDTH = 80


def introduction(trainer: Trainer, task: Any) -> str:
    """Network, images, device, batch, schedule and folder, a line each."""
    data: Any = trainer.datamodule  # pyright: ignore
    lines = [("network", network_line(task)), *data.describe()]
    device = (
        f"{trainer.world_size} x {device_name(trainer)}" if trainer.world_size > 1 else device_name(trainer)
    )
    lines.append(("device", f"{device}, precision {trainer.precision}"))
    batch = f"{data.batch_size} images"
    factors = (data.batch_size, trainer.world_size, trainer.accumulate_grad_batches)
    if task.global_batch_size != data.batch_size:
        batch = f"{' x '.join(str(n) for n in factors if n > 1)} = {task.global_batch_size} images"
        batch += (
            " (per device"
            + (", devices" if factors[1] > 1 else "")
            + (", batches" if factors[2] > 1 else "")
            + ")"
        )
    lines.append(("batch", batch))
    lines += [("schedule", schedule_line(trainer, task)), ("run", str(trainer.default_root_dir))]
    return "\n".join(
        textwrap.fill(
            shown(text),
            _WIDTH,
            initial_indent=f"{title:<12}",
            subsequent_indent=" " * 12,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for title, text in lines
    )


def network_line(task: Any) -> str:
    count = sum(p.numel() for p in task.network.parameters())
    trained = sum(p.numel() for p in task.network.parameters() if p.requires_grad)
    frozen = f" ({amount(count - trained)} of them frozen)" if trained < count else ""
    return f"{task.name}, {amount(count)} parameters{frozen}, {task.num_classes} classes"


def amount(n: int) -> str:
    """30.2 M, 165 k."""
    return f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n / 1e3:.0f} k" if n >= 1e4 else str(n)


def device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else str(device)


def schedule_line(trainer: Trainer, task: Any) -> str:
    """For example: 36 epochs of 78 steps; adamw, lr 1e-05 to 0.002 in 2 epochs, then cosine to 0."""
    schedule, scale = task.schedule, task.lr_scale
    epochs, per_epoch = task.length
    warmup = schedule.warmup_of(epochs)
    peak = f"{task.optimizer.lr * scale:.3g}"
    rate = f"{schedule.warmup_lr * scale:.3g} to {peak} in {warmup:.3g} epochs" if warmup else peak
    end = "constant" if schedule.name == "constant" else f"{schedule.name} to {schedule.min_lr * scale:.3g}"
    cool = f", {schedule.cooldown_epochs:g} epochs of it at the end" if schedule.cooldown_epochs else ""
    steps = f"{per_epoch} step{'s' if per_epoch > 1 else ''}"
    length = f"{epochs:.3g} epoch{'s' if epochs != 1 else ''} of {steps}"
    return f"{length}; {task.optimizer.name}, lr {rate}, then {end}{cool}"


def split_line(source: Any, name: str) -> str:
    """For example: 10000 images (train), 10 classes: airplane ... truck."""
    try:
        images = f"{len(source)} images"
    except TypeError:
        images = "images of unknown number"
    names = source.class_names
    count = len(names) if names else source.num_classes
    classes = f", {count} class{'es' if count != 1 else ''}" if count else ""
    if names:
        classes += f": {' ... '.join(dict.fromkeys((names[0], names[-1])))}"
    return f"{images} ({name}){classes}"


def next_steps(model: Path, data: Any) -> str:
    """The commands that take what was trained on these data."""
    checkpoint, root, split, reader = shlex.quote(str(model)), data.root, data.splits["val"], data.reader
    said = [f"ganglion predict --checkpoint {checkpoint} IMAGE ..."]
    if split is not None and data.val_fraction is None and data.val_labels is None:
        options = f"--data {shlex.quote(root)}" + (
            f" --split {shlex.quote(split)}" if split != "validation" else ""
        )
        options += f" --data-name {shlex.quote(reader)}" if reader else ""
        said.insert(0, f"ganglion validate --checkpoint {checkpoint} {options}")
    return "\n".join(["next:", *(f"  {line}" for line in said)])
