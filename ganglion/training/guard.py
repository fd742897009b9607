"""Stops a run that cannot succeed: a loss that is NaN or infinite, more unreadable images than a stated fraction."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from ..data import Unreadable, UnreadableCounter
from .data import PartName
from .task import Task
from .trainer import log_interval


class Guard(Callback):
    """Looks at the losses and the unreadable images every `trainer.log_every_n_steps` steps and at the end of an epoch.

    The unreadable images of each part are listed at the end of the first epoch that met them.
    """

    def __init__(self, max_unreadable: float):
        self._counters: dict[PartName, UnreadableCounter] = {
            "train": UnreadableCounter(max_unreadable),
            "val": UnreadableCounter(max_unreadable),
        }
        self._waiting: dict[PartName, list[Unreadable]] = {"train": [], "val": []}
        self._reported = {"train": 0, "val": 0}

    def state_dict(self) -> dict[str, Any]:
        found = {
            part: [list(unreadable) for unreadable in counter.found()]
            for part, counter in self._counters.items()
        }
        return {"found": found, "reported": self._reported}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._reported = dict(state_dict["reported"])
        for part, found in state_dict["found"].items():
            self._counters[part].add(Unreadable(*entry) for entry in found)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._waiting["train"] += batch.unreadable
        assert isinstance(pl_module, Task)
        if (batch_idx + 1) % log_interval(trainer) == 0:
            pl_module.check_finite()
            self._check(pl_module, "train")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *args: Any,
    ) -> None:
        self._waiting["val"] += batch.unreadable

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        self._check(pl_module, "val")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        pl_module.check_finite()
        self._check(pl_module, "train")
        for part, counter in self._counters.items():
            if len(counter) > self._reported[part]:
                self._reported[part] = len(counter)
                if trainer.is_global_zero:
                    print(f"{part}: {counter.report()}", flush=True)

    def _check(self, task: Task, part: PartName) -> None:
        """Count what all ranks have met since the last time; all of them call this."""
        found, ranks = self._waiting[part], task.data.processes.world_size
        if ranks > 1:
            everyones: list[Any] = [None] * ranks
            dist.all_gather_object(everyones, found)
            found = [unreadable for ranks in everyones for unreadable in ranks]
        self._waiting[part] = []
        self._counters[part].add(found)
        self._counters[part].check(len(task.data.source(part)))
