"""Lightning's trainer, under names of ours: all that it does not promise, or does not type, is asked for here alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer that a module belongs to; None before there is one."""
    return module._trainer


def data_of(trainer: Trainer | None) -> Any:
    """What the trainer reads from; None without."""
    return getattr(trainer, "datamodule", None)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    return list(trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]  it sets them where nobody sees


def epochs_done(trainer: Trainer) -> int:
    """Epochs completed, as the samplers count them (`current_epoch` lags behind in a run resumed by steps)."""
    counter: Any = trainer.fit_loop.epoch_progress.current
    return counter.processed


def batches_done(trainer: Trainer) -> int:
    """Batches of the epoch that the run is in."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return 0 if progress.is_last_batch else progress.current.ready


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the optimizer step that this batch belongs to has not been made yet."""
    return trainer.fit_loop._should_accumulate()


def log_interval(trainer: Trainer) -> int:
    """`trainer.log_every_n_steps`."""
    return vars(trainer)["log_every_n_steps"]


def limit_of_batches(trainer: Trainer) -> int | float:
    """`trainer.limit_train_batches`: a number, or as a float a fraction."""
    return trainer.limit_train_batches


def validation_batches(trainer: Trainer) -> float:
    total = trainer.num_val_batches
    return sum(total) if isinstance(total, list) else total


def root_device(trainer: Trainer) -> torch.device:
    return trainer.strategy.root_device


def validate_at_the_end(trainer: Trainer) -> None:
    """Have the run end after this batch, with a validation, whatever its interval, also within an epoch."""
    trainer.should_stop = True
    trainer.check_val_every_n_epoch = 1


def any_rank(trainer: Trainer, flag: bool) -> bool:
    """Whether the flag is set on any rank: to be called by all of them."""
    return flag if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(flag, all=False)


def sum_over_ranks(trainer: Trainer, *values: float) -> list[float]:
    """Each of the values, summed over all ranks: to be called by all of them."""
    if trainer.world_size == 1:
        return list(values)
    totals = torch.tensor(values, dtype=torch.float64, device=root_device(trainer))
    summed = trainer.strategy.reduce(totals, reduce_op="sum")
    assert isinstance(summed, torch.Tensor)
    return summed.tolist()


def rank_of_environment() -> int:
    """This process's rank, also where no trainer exists (any more)."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0"))))


#: Lightning's counters of epochs, batches and optimizer steps in a checkpoint.
_COUNTERS = (
    "epoch_progress",
    "epoch_loop.batch_progress",
    "epoch_loop.automatic_optimization.optim_progress",
)


def has_counters(loops: Any) -> bool:
    """Whether the entry "loops" of a checkpoint says where the run was."""
    fit = loops.get("fit_loop") if isinstance(loops, dict) else None
    return isinstance(fit, dict) and all(isinstance(fit.get(name), dict) for name in _COUNTERS)


def saved_epochs(checkpoint: Mapping[str, Any]) -> int:
    """Epochs completed by the run of a checkpoint."""
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def saved_batches(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The counters of batches in a checkpoint: "current" and "total", mappings that a change of the batch rewrites."""
    return checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
