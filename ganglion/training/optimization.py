"""Optimizers, weight-decay groups and learning-rate schedules, all of them timm's."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim import (
    create_optimizer_v2,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ..config import check_literals, check_range
from ..errors import unknown

#: What has two dimensions or more without being a matrix or a kernel: state matrices, step-size biases, layer scales,
#: the position biases of window attention.
_SCALES = ("*.A_logs", "*.dt_projs_bias", "*.ls1.weight", "*.ls2.weight", "*.relative_position_bias_table")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """One of timm's optimizers and the parameters it decays.

    Args:
        name: an optimizer of timm (`timm.optim.list_optimizers()`).
        lr: peak learning rate.
        lr_batch_size: global batch size (images per optimizer step) for which `lr`, `warmup_lr` and `min_lr` are
            meant; they are scaled linearly to the actual one. null: never scaled.
        weight_decay: of every parameter that decays.
        decay: which parameters decay. "published": all but one-dimensional ones and `.bias`, as the papers' scripts do;
            this includes A_logs, the step-size biases, SparX's layer scales and the position biases of its windows.
            "corrected": not those either. "mmdet": of detectors and segmentors, all but those whose published name
            holds "norm", as the papers' do; biases are decayed.
        layer_decay: factor between the learning rates of one layer and the next towards the stem, for fine-tuning.
        betas: Adam's decay rates. null: the optimizer's default.
        eps: Adam's epsilon. null: the optimizer's default.
        momentum: of SGD and its relatives.
    """

    name: str = "adamw"
    lr: float = 1e-3
    lr_batch_size: int | None = None
    weight_decay: float = 0.05
    decay: Literal["published", "corrected", "mmdet"] = "published"
    layer_decay: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_literals(self)
        check_range("optimizer.lr", self.lr, above=0)
        check_range("optimizer.lr_batch_size", self.lr_batch_size, 1)
        check_range("optimizer.weight_decay", self.weight_decay, 0)
        check_range("optimizer.layer_decay", self.layer_decay, above=0, high=1)
        check_range("optimizer.betas", self.betas, 0, below=1)
        check_range("optimizer.eps", self.eps, above=0)
        check_range("optimizer.momentum", self.momentum, 0, below=1)
        if self.name not in (names := list_optimizers()):
            raise ValueError("OptimizerConfig.name: " + unknown("optimizer", self.name, map(str, names)))


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """One of timm's schedules over the whole run, its length taken from the trainer's `max_epochs` or `max_steps`.

    Args:
        name: schedule.
        per: change the learning rate at every optimizer step or at every epoch.
        warmup_epochs: epochs of linear rise from `warmup_lr`. null: a tenth of the run, at most 5.
        warmup_lr: learning rate of the first step.
        warmup_prefix: the schedule proper begins after the warm-up, at the peak. Otherwise the warm-up hides its begin.
        min_lr: learning rate at the end of the schedule.
        cooldown_epochs: epochs at `min_lr` at the end of the run.
        decay_epochs: interval of "step".
        decay_milestones: epochs at which "multistep" falls.
        decay_rate: factor of "step" and "multistep", power of "poly".
    """

    name: Literal["cosine", "step", "multistep", "poly", "constant"] = "cosine"
    per: Literal["step", "epoch"] = "step"
    warmup_epochs: float | None = None
    warmup_lr: float = 1e-6
    warmup_prefix: bool = True
    min_lr: float = 1e-5
    cooldown_epochs: float = 0
    decay_epochs: float = 30
    decay_milestones: tuple[float, ...] = ()
    decay_rate: float = 0.1

    def __post_init__(self) -> None:
        check_literals(self)
        for name in ("warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs", "decay_milestones"):
            check_range(f"schedule.{name}", getattr(self, name), 0)
        check_range("schedule.decay_epochs", self.decay_epochs, above=0)
        check_range("schedule.decay_rate", self.decay_rate, above=0)

    def warmup_of(self, epochs: float) -> float:
        """Epochs of warm-up in a run of `epochs`. By epochs, which are whole, a short run has none."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        tenth = min(5.0, (epochs - self.cooldown_epochs) / 10)
        return tenth if self.per == "step" else math.floor(tenth)


def build_optimizer(
    network: nn.Module, config: OptimizerConfig, *, lr: float, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimizer over the network's parameters, in groups by weight decay (and layer, with `layer_decay`).

    lr: peak learning rate, already scaled.
    fused: one kernel for all parameters, where the optimizer has one. Not with AMP, under which the trainer clips.
    """
    given = {"betas": config.betas, "eps": config.eps}
    extra: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if fused and config.name in ("adam", "adamw", "sgd"):
        extra["fused"] = True

    timm_network: Any = network
    undecayed: Collection[str] = timm_network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    if config.decay == "corrected":
        undecayed = {*undecayed, *_SCALES}
    if config.decay == "mmdet":
        if not hasattr(network, "undecayed_as_mmdet"):
            raise ValueError(
                "optimizer.decay is mmdet, whose rule is of detectors and segmentors: expected published or corrected "
                f"for a {type(network).__name__}"
            )
        if config.layer_decay is not None:
            raise ValueError("optimizer.layer_decay goes with optimizer.decay published or corrected")
        undecayed = timm_network.undecayed_as_mmdet()

    def groups(network: nn.Module) -> list[dict[str, Any]]:
        if config.decay == "mmdet":  # biases, too, which timm's groups leave out
            named = [(name in undecayed, p) for name, p in network.named_parameters() if p.requires_grad]
            return [
                {"params": [p for free, p in named if not free], "weight_decay": config.weight_decay},
                {"params": [p for free, p in named if free], "weight_decay": 0.0},
            ]
        if config.layer_decay is None:
            return param_groups_weight_decay(network, config.weight_decay, no_weight_decay_list=undecayed)
        return param_groups_layer_decay(
            network, config.weight_decay, no_weight_decay_list=undecayed, layer_decay=config.layer_decay
        )

    return create_optimizer_v2(
        network, opt=config.name, lr=lr, momentum=config.momentum, param_group_fn=groups, **extra
    )


def build_schedule(
    optimizer: torch.optim.Optimizer,
    config: ScheduleConfig,
    *,
    epochs: float,
    updates_per_epoch: float,
    scale: float = 1.0,
) -> Scheduler:
    """The schedule of a run of `epochs` epochs of `updates_per_epoch` optimizer steps.

    Its `step_update(updates)` or, with `per="epoch"`, its `step(epoch)` sets the learning rate.
    scale: factor of `warmup_lr` and `min_lr`.

    Raises ValueError where warm-up and cool-down leave nothing of the run.
    """
    by_step = config.per == "step"

    def length(of_epochs: float) -> int:
        return round(of_epochs * updates_per_epoch) if by_step else math.ceil(of_epochs)

    warmup = config.warmup_of(epochs)
    aside = config.cooldown_epochs + (warmup if config.warmup_prefix else 0)
    if length(epochs) - length(aside) < 1:
        raise ValueError(
            f"schedule: warm-up and cool-down take {aside:g} of {epochs:g} epochs: expected less of "
            "schedule.warmup_epochs and schedule.cooldown_epochs"
        )
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=config.name,
        num_epochs=length(epochs) - length(aside),
        cooldown_epochs=length(config.cooldown_epochs),
        warmup_epochs=length(warmup),
        warmup_lr=config.warmup_lr * scale,
        warmup_prefix=config.warmup_prefix,
        min_lr=config.min_lr * scale,
        decay_epochs=length(config.decay_epochs),
        # timm's falls a step before its milestone.
        decay_milestones=[length(epoch) + by_step for epoch in config.decay_milestones],
        decay_rate=config.decay_rate,
        step_on_epochs=not by_step,
        updates_per_epoch=1,
    )
    assert schedule is not None
    return schedule
