"""Training checkpoints: written whole or not at all, verified when read, the last few kept, the newest good one found.

A run's folder holds `checkpoints/step-00001234.ckpt` and `checkpoints/best.ckpt`. The folder is the only record of what
there is. Files are read with torch's `weights_only` unpickler.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
import warnings
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ..models import CheckpointError
from .task import TrainingError, agree

_NAME = re.compile(r"step-(\d+)\.ckpt")


class Interrupted(Exception):
    """A signal ended training; a checkpoint was written.

    signum: the signal. path: the checkpoint.
    """

    def __init__(self, signum: int, path: Path):
        super().__init__(f"{signal.Signals(signum).name}: training interrupted; saved {path}")
        self.signum, self.path = signum, path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, flushes it to the disk and renames it; reads after checking every checksum."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"cannot write the checkpoint {target}: {_reason(error)}. Earlier checkpoints are intact: "
                + (", ".join(p.name for p in list_checkpoints(target.parent)) or "there are none")
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        _sync_folder(target.parent)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict:
        verify(Path(path))
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


def _reason(error: BaseException) -> str:
    """The system's words for what went wrong, which torch's writer may have wrapped."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).partition("\n")[0]


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where folders can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def verify(path: Path) -> None:
    """Raise CheckpointError unless the file is there, whole, and every record has its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise CheckpointError(f"the checkpoint {path} is truncated or damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"the checkpoint {path} is damaged: wrong checksum of {damaged}")


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run by step, newest first."""
    found = [path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]), reverse=True)  # pyright: ignore


def last_good(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; each damaged one that is newer is announced. None if there is none."""
    for path in list_checkpoints(folder):
        try:
            verify(path)
        except CheckpointError as error:
            warnings.warn(f"ganglion: {error}; trying the one before", RuntimeWarning, stacklevel=2)
        else:
            return path
    return None


class Checkpoints(Checkpoint):
    """Saves at the end of every epoch, every so many steps or minutes, and when a signal asks to stop.

    Args:
        keep: how many of the newest checkpoints stay.
        every_n_epochs: save at the end of each n-th epoch, and of the last.
        every_n_steps: also save after each n-th optimizer step. null: not.
        every_n_minutes: also save when this many minutes have passed since the last. null: not.
        monitor: metric whose best value is kept as best.ckpt. null: none.
        mode: whether the best value is the largest or the smallest.
    """

    def __init__(
        self,
        keep: int = 3,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 30,
        monitor: str | None = "val/top1",
        mode: str = "max",
    ):
        if keep < 1:
            raise ValueError(f"Checkpoints.keep is {keep}: expected at least 1")
        if mode not in ("max", "min"):
            raise ValueError(f"Checkpoints.mode is {mode!r}: expected 'max' or 'min'")
        self.keep, self.monitor, self.mode = keep, monitor, mode
        self.every_n_epochs, self.every_n_steps, self.every_n_minutes = (
            every_n_epochs,
            every_n_steps,
            every_n_minutes,
        )
        self.best: float | None = None
        self._signal: int | None = None
        self._saved_step = -1
        self._saved_at = time.monotonic()
        self._handlers: dict[int, Any] = {}

    def folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
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
        step = trainer.global_step
        if step == self._saved_step or trainer.fit_loop._should_accumulate():
            return
        if batch_idx + 1 >= trainer.num_training_batches:
            return  # the end of the epoch saves, after validation
        if trainer.world_size > 1 and step % trainer.log_every_n_steps:  # pyright: ignore
            asked, due = False, False
        else:
            asked = agree(trainer, self._signal is not None)
            minutes = (time.monotonic() - self._saved_at) / 60
            due = agree(trainer, self.every_n_minutes is not None and minutes >= self.every_n_minutes)
        if asked or due or (self.every_n_steps and step % self.every_n_steps == 0):
            path = self._save(trainer, pl_module)
            if asked:
                raise Interrupted(self._signal or signal.SIGTERM, path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done: int = pl_module.epoch  # pyright: ignore
        asked = agree(trainer, self._signal is not None)
        improved = self._improved(trainer)
        if asked or improved or done % self.every_n_epochs == 0 or done == trainer.max_epochs:
            path = self._save(trainer, pl_module)
            if improved and trainer.is_global_zero:
                replace_with_link(path, path.with_name("best.ckpt"))
            if asked:
                raise Interrupted(self._signal or signal.SIGTERM, path)

    def _improved(self, trainer: Trainer) -> bool:
        """Whether the monitored metric is the best so far, which it then becomes."""
        if (
            self.monitor is None
            or trainer.sanity_checking
            or not trainer.fit_loop.epoch_loop.val_loop._has_run
        ):
            return False
        if self.monitor not in trainer.callback_metrics:
            raise TrainingError(
                f"Checkpoints.monitor is {self.monitor!r}, which is not measured. Measured: "
                + ", ".join(sorted(trainer.callback_metrics))
            )
        value = float(trainer.callback_metrics[self.monitor])
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        if better:
            self.best = value
        return better

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> Path:
        """Save, then remove all but the newest `keep`. Called on all ranks."""
        pl_module.check_finite()  # pyright: ignore
        folder = self.folder(trainer)
        path = folder / f"step-{trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for old in list_checkpoints(folder)[self.keep :]:
                old.unlink()
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        return path


def replace_with_link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, atomically and, where the file system can, without a second copy."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(source, temporary)
    except OSError:
        import shutil

        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
