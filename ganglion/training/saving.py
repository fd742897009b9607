"""When a run saves, and how it ends early: on a signal, a time or a number of steps, always with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ..config import check_range
from ..files import remove_temporaries
from .errors import TrainingError
from .run_checkpoints import checkpoint_path, remove_old, replace_with_link
from .task import Task
from .trainer import any_rank, is_accumulating, log_interval


class Interrupted(Exception):
    """Training ended before the end of the run, with a checkpoint from which it resumes.

    path: the checkpoint. signum: the signal that asked, or None for a limit of the recipe.
    """

    def __init__(self, reason: str, path: Path, signum: int | None = None):
        super().__init__(f"{reason}: training interrupted; saved {path}")
        self.path: Path = path
        self.signum: int | None = signum


class Checkpoints(Checkpoint):
    """Saves at the end of every epoch, every N steps or minutes, and when a signal or a limit ends the run early.

    Args:
        keep: how many of the newest checkpoints stay.
        every_n_epochs: save at the end of each n-th epoch, and of the last.
        every_n_steps: also save after each n-th optimizer step. null: not.
        every_n_minutes: also save when this many minutes have passed since the last. null: not.
        monitor: metric whose best value is kept as best.ckpt. null: none.
        mode: whether the best value is the largest or the smallest.
    """

    #: Seconds after which this command ends the run early; set from `trainer.max_time`.
    max_seconds: float | None = None

    def __init__(
        self,
        keep: int = 3,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 30,
        monitor: str | None = None,
        mode: str = "max",
    ):
        check_range("checkpoint.keep", keep, 1)
        check_range("checkpoint.every_n_epochs", every_n_epochs, 1)
        check_range("checkpoint.every_n_steps", every_n_steps, 1)
        check_range("checkpoint.every_n_minutes", every_n_minutes, above=0)
        if mode not in ("max", "min"):
            raise ValueError(f"checkpoint.mode is {mode!r}: expected 'max' or 'min'")
        self.keep: int = keep
        self.monitor: str | None = monitor
        self.mode = mode
        self.every_n_epochs: int = every_n_epochs
        self.every_n_steps: int | None = every_n_steps
        self.every_n_minutes: float | None = every_n_minutes
        self.best: float | None = None
        self._signal: int | None = None
        self._saved_step = -1
        self._started_at = self._saved_at = time.monotonic()
        self._handlers: dict[int, Any] = {}

    def folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.folder(trainer).is_dir():
            remove_temporaries(self.folder(trainer))
        self._started_at = self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._handlers[signum] = signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt  # asked twice: do not wait for the end of the step
        self._signal = signum

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._handlers.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        step = trainer.global_step
        if step == self._saved_step or is_accumulating(trainer):
            return
        if batch_idx + 1 >= trainer.num_training_batches:
            return  # the end of the epoch saves, after validation
        if pl_module.complete:
            # The run ends within an epoch. Saved as such, so that a longer run resumes in it.
            self._save(trainer, pl_module)
            return
        limit = _max_steps_reached(trainer)
        if trainer.world_size > 1 and step % log_interval(trainer):
            asked, due = False, False
        else:
            asked = any_rank(trainer, self._signal is not None or self._time_is_up())
            minutes = (time.monotonic() - self._saved_at) / 60
            due = any_rank(trainer, self.every_n_minutes is not None and minutes >= self.every_n_minutes)
        if limit or asked or due or (self.every_n_steps and step % self.every_n_steps == 0):
            path = self._save(trainer, pl_module)
            if limit or asked:
                raise self._interrupted(trainer, path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        ended = pl_module.complete or trainer.should_stop
        limit = not ended and _max_steps_reached(trainer)
        asked = any_rank(trainer, self._signal is not None or (not ended and self._time_is_up()))
        improved = self._improved(pl_module)
        if limit or asked or improved or ended or pl_module.epoch % self.every_n_epochs == 0:
            path = self._save(trainer, pl_module)
            if improved and trainer.is_global_zero:
                replace_with_link(path, path.with_name("best.ckpt"))
            if limit or asked:
                raise self._interrupted(trainer, path)

    def _time_is_up(self) -> bool:
        return self.max_seconds is not None and time.monotonic() - self._started_at >= self.max_seconds

    def _interrupted(self, trainer: Trainer, path: Path) -> Interrupted:
        if self._signal is not None:
            return Interrupted(signal.Signals(self._signal).name, path, self._signal)
        if _max_steps_reached(trainer):
            return Interrupted(f"trainer.max_steps {trainer.max_steps} is reached", path)
        if self._time_is_up():
            return Interrupted("trainer.max_time is over", path)
        return Interrupted("another process was asked to end", path, signal.SIGTERM)

    def _improved(self, task: Task) -> bool:
        """Whether the monitored metric was measured in this epoch and is the best so far, which it then becomes."""
        if self.monitor is None or not task.measured:
            return False
        if self.monitor not in task.measured:
            raise TrainingError(
                f"checkpoint.monitor is {self.monitor!r}, which is not measured. Measured: "
                + ", ".join(sorted(task.measured))
            )
        value = task.measured[self.monitor]
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        if better:
            self.best = value
        return better

    def _save(self, trainer: Trainer, pl_module: Task) -> Path:
        """Save, unless this step is saved, then remove all but the newest `keep`. Called on all ranks."""
        path = checkpoint_path(self.folder(trainer), trainer.global_step)
        if trainer.global_step == self._saved_step:
            return path
        pl_module.check_finite()
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            remove_old(path.parent, self.keep)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        return path


def _max_steps_reached(trainer: Trainer) -> bool:
    return trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
