"""What a run says before it begins and after it has ended, at most 80 columns wide."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer
from torch import nn

from ..data import ImageSource
from ..errors import shown
from .trainer import root_device

if TYPE_CHECKING:
    from .data import TaskData
    from .task import Task

_WIDTH = 80


def introduction(trainer: Trainer, task: Task) -> str:
    """Network, images, device, batch, schedule and folder, a line each."""
    data = task.data
    lines = [("network", task.describe()), *data.describe()]
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
    lines += [("schedule", schedule_line(task)), ("run", str(trainer.default_root_dir))]
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


def parameters_line(network: nn.Module) -> str:
    """30.2 M parameters, and how many of them are frozen."""
    count = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    frozen = f" ({amount(count - trained)} of them frozen)" if trained < count else ""
    return f"{amount(count)} parameters{frozen}"


def amount(n: int) -> str:
    """30.2 M, 165 k."""
    return f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n / 1e3:.0f} k" if n >= 1e4 else str(n)


def device_name(trainer: Trainer) -> str:
    device = root_device(trainer)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else str(device)


def schedule_line(task: Task) -> str:
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


def split_line(source: ImageSource, name: str) -> str:
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


def next_steps(model: Path, data: TaskData, task: str = "") -> str:
    """The commands that take what was trained on these data. task: the option that these need to name it, if any."""
    checkpoint = f"--checkpoint {shlex.quote(str(model))}{task}"
    said = [f"ganglion predict {checkpoint} IMAGE ..."]
    if (options := data.validate_options()) is not None:
        said.insert(0, f"ganglion validate {checkpoint} {options}")
    return "\n".join(["next:", *(f"  {line}" for line in said)])
