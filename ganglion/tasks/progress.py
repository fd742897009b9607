"""How a run shows itself: a bar on a terminal, plain lines elsewhere, and a CSV file with a row for every epoch."""

from __future__ import annotations

import csv
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from ..config import check_range
from ..files import replacing

LOG = "log.csv"


class Progress(ProgressBar):
    """Prints loss, learning rate, images/s, memory and the time that is left; writes `log.csv` in the run's folder.

    images/s counts all devices and leaves out validation. Memory is the most that PyTorch has held on the GPU, or the
    process's largest resident set on a CPU.

    Args:
        every_n_seconds: interval of the plain lines within an epoch, where the output is no terminal.
    """

    def __init__(self, every_n_seconds: float = 60.0):
        super().__init__()
        check_range("progress.every_n_seconds", every_n_seconds, above=0)
        self.every_n_seconds = every_n_seconds
        self._enabled = True
        self._bar: tqdm | None = None
        self._images = self._seconds = self._mark = self._shown = 0.0
        self._started = self._first = 0.0

    @property
    def is_enabled(self) -> bool:
        """Asked by the task's `print`."""
        return self._enabled

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            tqdm.write(" ".join(map(str, args)), file=sys.stdout)
            sys.stdout.flush()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()
        self._first = self._fraction(trainer)
        if trainer.is_global_zero:
            keep_rows(Path(trainer.default_root_dir) / LOG, before_epoch=pl_module.epoch + 1)  # pyright: ignore
            self._introduce(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images = self._seconds = 0.0
        self._mark = self._shown = time.monotonic()
        if self._enabled and trainer.is_global_zero and sys.stdout.isatty():
            self._bar = tqdm(
                total=None
                if trainer.num_training_batches == float("inf")
                else int(trainer.num_training_batches),
                unit="batch",
                leave=False,
                dynamic_ncols=True,
                file=sys.stdout,
                bar_format=f"{self._title(trainer, pl_module)} {{n_fmt}}/{{total_fmt}} |{{bar}}| {{desc}}",
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._images += len(batch.targets) * trainer.world_size
        if not self._mark:  # an epoch that was resumed in its middle
            self.on_train_epoch_start(trainer, pl_module)
        self._seconds += now - self._mark
        self._mark = now
        if not (self._enabled and trainer.is_global_zero):
            return
        if self._bar is not None:
            if now - self._shown > 0.5:
                self._shown = now
                self._bar.n = batch_idx + 1
                self._bar.set_description_str(self._state(trainer, pl_module.mean_loss()))  # pyright: ignore
        elif now - self._shown > self.every_n_seconds:
            self._shown = now
            batches = f"batch {batch_idx + 1}/{trainer.num_training_batches}"
            state = self._state(trainer, pl_module.mean_loss())  # pyright: ignore
            self.print(f"{self._title(trainer, pl_module)}, {batches}: {state}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = 0.0
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        loss = pl_module.mean_loss(everywhere=True)  # pyright: ignore
        if not trainer.is_global_zero:
            return
        metrics: dict[str, float] = pl_module.measured  # pyright: ignore
        self._write(trainer, pl_module, loss, metrics)
        if self._enabled:
            shown = "".join(f", {name} {value:.4g}" for name, value in metrics.items())
            # By now the epoch counts as done.
            title = f"epoch {pl_module.epoch}/{trainer.max_epochs}"  # pyright: ignore
            self.print(f"{title}: {self._state(trainer, loss)}{shown}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()

    def _introduce(self, trainer: Trainer, task: Any) -> None:
        parameters = sum(p.numel() for p in task.network.parameters() if p.requires_grad)
        device = f"{trainer.world_size} x {trainer.strategy.root_device.type}, precision {trainer.precision}"
        accumulated = f" x {n} accumulated" if (n := trainer.accumulate_grad_batches) > 1 else ""
        batch = trainer.datamodule.batch_size  # pyright: ignore
        self.print(
            f"{type(task.network).__name__}, {parameters / 1e6:.3f} M parameters; {device}; "
            f"batch {batch} x {trainer.world_size}{accumulated}, {trainer.estimated_stepping_batches} steps; "
            f"{trainer.default_root_dir}"
        )

    def _title(self, trainer: Trainer, task: Any) -> str:
        epochs = trainer.max_epochs if trainer.max_epochs != -1 else "?"
        return f"epoch {task.epoch + 1}/{epochs}"

    def _rate(self) -> float:
        return self._images / max(self._seconds, 1e-9)

    def _state(self, trainer: Trainer, loss: float) -> str:
        lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        done = self._fraction(trainer)
        left = "?"
        if done > self._first:
            seconds = (time.monotonic() - self._started) * (1 - done) / (done - self._first)
            left = str(timedelta(seconds=round(seconds)))
        return (
            f"loss {loss:.4f}, lr {lr:.2e}, {self._rate():.0f} images/s, "
            f"{memory_gib(trainer):.2f} GiB, {left} left"
        )

    @staticmethod
    def _fraction(trainer: Trainer) -> float:
        """Share of the run's optimizer steps that are done."""
        return trainer.global_step / max(1, trainer.estimated_stepping_batches)

    def _write(self, trainer: Trainer, task: Any, loss: float, metrics: dict[str, float]) -> None:
        row = {
            "epoch": task.epoch,
            "step": trainer.global_step,
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "train/loss": loss,
            # Empty in an epoch without validation.
            **(dict.fromkeys(task.METRICS, "") if trainer.enable_validation else {}),
            **metrics,
            "images_per_second": round(self._rate(), 1),
            "memory_gib": round(memory_gib(trainer), 3),
            "train_seconds": round(self._seconds, 2),
        }
        append_row(Path(trainer.default_root_dir) / LOG, row)


def memory_gib(trainer: Trainer) -> float:
    """The most memory that was held so far, in GiB: on the GPU, or resident on a CPU. nan where nobody counts."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def is_log(path: Path) -> bool:
    """Whether a file was written here, judged by its first columns."""
    try:
        with open(path, newline="") as file:
            return file.readline().startswith("epoch,step,lr,train/loss")
    except (OSError, ValueError):
        return False


def keep_rows(path: Path, *, before_epoch: int) -> None:
    """Forget the epochs that a resumed run will do again."""
    rows = read_rows(path)
    kept = [row for row in rows if int(row["epoch"]) < before_epoch]
    if len(kept) < len(rows):
        _write_rows(path, kept, list(rows[0]))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row; columns that it brings for the first time are empty in the rows before."""
    rows = [*read_rows(path), {key: str(value) for key, value in row.items()}]
    _write_rows(path, rows, list(dict.fromkeys(key for r in rows for key in r)))


def _write_rows(path: Path, rows: list[dict[str, str]], columns: list[str]) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
