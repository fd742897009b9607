"""How a run shows itself: what it will do, a bar on a terminal, a line for every epoch, and log.csv."""

from __future__ import annotations

import csv
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from ..config import check_range
from ..errors import unknown
from ..files import replacing
from .metrics import as_text
from .summary import introduction
from .task import Task
from .trainer import root_device, validation_batches

LOG = "log.csv"

Show = Literal["auto", "bar", "lines", "off"]


class Progress(ProgressBar):
    """Says what the run will do, then how far it is; writes `log.csv` in the run's folder.

    images/s counts all devices and leaves out validation. Memory (GiB) is the most that PyTorch has held on the GPU, or
    the process's largest resident set on a CPU.

    Args:
        show: a bar in an epoch and a line at its end, lines only, or nothing. auto: a bar on a terminal, else lines.
        every_n_seconds: interval of the lines within an epoch, where there is no bar.
    """

    def __init__(self, show: Show = "auto", every_n_seconds: float = 60.0):
        super().__init__()
        if show not in (valid := ("auto", "bar", "lines", "off")):
            raise ValueError("Progress.show: " + unknown("value", show, valid))
        check_range("progress.every_n_seconds", every_n_seconds, above=0)
        self.show = show
        self.every_n_seconds: float = every_n_seconds
        self._enabled = show != "off"
        self._bar = self._header = False
        self._images = self._seconds = self._mark = self._shown = 0.0
        self._started = self._first = 0.0

    @property
    def is_enabled(self) -> bool:
        """Asked by the task's `print`."""
        return self._enabled

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = self.show != "off"

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            self._clear()
            print(*args, flush=True)

    def _clear(self) -> None:
        """Take the bar away, for what is printed in its place."""
        if self._bar:
            print("\r\x1b[K", end="", flush=True)
            self._bar = False

    def _has_bar(self) -> bool:
        return self.show == "bar" or (self.show == "auto" and sys.stdout.isatty())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()
        self._first = self._fraction(trainer)
        self._header = False
        if trainer.is_global_zero:
            keep_rows(Path(trainer.default_root_dir) / LOG, before_epoch=_task(pl_module).epoch + 1)
            self.print(introduction(trainer, _task(pl_module)))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images = self._seconds = 0.0
        self._mark = self._shown = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._images += len(batch.targets) * trainer.world_size
        if not self._mark:  # an epoch that was resumed in its middle
            self.on_train_epoch_start(trainer, pl_module)
        self._seconds += now - self._mark
        self._mark = now
        self._step(trainer, _task(pl_module), batch_idx + 1, trainer.num_training_batches)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *args: Any,
    ) -> None:
        if not trainer.sanity_checking:
            total = validation_batches(trainer)
            self._step(trainer, _task(pl_module), batch_idx + 1, total, "validation ")

    def _step(self, trainer: Trainer, task: Task, done: int, total: float, what: str = "") -> None:
        """Show a batch, if it is time to."""
        now, bar = time.monotonic(), self._has_bar()
        if not (self._enabled and trainer.is_global_zero) or now - self._shown < (
            0.5 if bar else self.every_n_seconds
        ):
            return
        self._shown = now
        parts = [f"epoch {self._epoch(trainer, task, task.epoch + 1)}", f"{what}{done}/{total}"]
        if not what:
            lr, loss = largest_lr(trainer), task.mean_loss()
            parts += [f"loss {loss:.4f}", f"{self._rate():.0f} images/s", f"{self._left(trainer)} left"]
            parts += [f"lr {lr:.1e}", f"{memory_gib(trainer):.2f} GiB"]
        if bar:
            print(f"\r{bar_line(parts, done / total, columns() - 1)}\x1b[K", end="", flush=True)
            self._bar = True
        else:
            print(fitting(parts, columns()), flush=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = 0.0
        task = _task(pl_module)
        loss = task.mean_loss(everywhere=True)
        if not trainer.is_global_zero:
            return
        metrics = task.measured
        self._write(trainer, task, loss, metrics)
        cells = {"epoch": self._epoch(trainer, task, task.epoch), "loss": as_text("loss", loss)}
        for name in task.measures if trainer.enable_validation else ():
            cells[name] = as_text(name, metrics[name]) if name in metrics else "-"
        cells |= {
            "images/s": f"{self._rate():.0f}",
            "left": self._left(trainer),
            "lr": f"{largest_lr(trainer):.1e}",
        }
        cells["GiB"] = f"{memory_gib(trainer):.2f}"
        header, row = table_row(cells, columns())
        if not self._header:
            self.print(header)
            self._header = True
        self.print(row)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._clear()

    @staticmethod
    def _epoch(trainer: Trainer, task: Task, epoch: int) -> str:
        return f"{epoch}/{trainer.max_epochs if trainer.max_epochs != -1 else math.ceil(task.length[0])}"

    def _rate(self) -> float:
        return self._images / max(self._seconds, 1e-9)

    def _left(self, trainer: Trainer) -> str:
        done = self._fraction(trainer)
        if done <= self._first:
            return "?"
        return duration((time.monotonic() - self._started) * (1 - done) / (done - self._first))

    @staticmethod
    def _fraction(trainer: Trainer) -> float:
        """Fraction of the run's optimizer steps that are done."""
        return min(1.0, trainer.global_step / max(1, trainer.estimated_stepping_batches))

    def _write(self, trainer: Trainer, task: Task, loss: float, metrics: dict[str, float]) -> None:
        row = {
            "epoch": task.epoch,
            "step": trainer.global_step,
            "lr": largest_lr(trainer),
            "train/loss": loss,
            # Empty in an epoch without validation.
            **(dict.fromkeys(task.measures, "") if trainer.enable_validation else {}),
            **metrics,
            "images_per_second": round(self._rate(), 1),
            "memory_gib": round(memory_gib(trainer), 3),
            "train_seconds": round(self._seconds, 2),
        }
        append_row(Path(trainer.default_root_dir) / LOG, row)


def _task(module: LightningModule) -> Task:
    assert isinstance(module, Task)
    return module


def columns() -> int:
    """Width of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def fitting(parts: list[str], width: int) -> str:
    """As many of the parts, in their order, as fit into a line."""
    line = parts[0][:width]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line


def bar_line(parts: list[str], done: float, width: int) -> str:
    """The first two parts, a bar of at least 8 characters, and as many of the others as fit beside it."""
    start = "  ".join(parts[:2])
    room = width - len(start) - 2
    if room < 10:
        return fitting(parts, width)
    end = fitting(parts[2:], room - 12) if len(parts) > 2 and len(parts[2]) <= room - 12 else ""
    length = min(30, room - (len(end) + 2 if end else 0))
    filled = round(length * min(1.0, done))
    return f"{start}  {'#' * filled}{'-' * (length - filled)}  {end}".rstrip()


def table_row(cells: dict[str, str], width: int) -> tuple[str, str]:
    """Names and values in columns of equal width: those at the end are left out where the line would be too long."""
    header = row = ""
    for name, value in cells.items():
        wide = max(len(name), len(value), 7 if name in ("epoch", "loss", "lr", "left") else 4)
        if header and len(header) + 2 + wide > width:
            break
        gap = "  " if header else ""
        header, row = f"{header}{gap}{name:>{wide}}", f"{row}{gap}{value:>{wide}}"
    return header, row


def duration(seconds: float) -> str:
    """3:25:59, and 4 d 3 h of days."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours < 100 else f"{hours // 24} d {hours % 24} h"


def number(value: Any) -> str:
    """A number as a person writes it: 0.0009273, 31.25, 1e-6."""
    if not isinstance(value, float):
        return str(value)
    mantissa, e, exponent = f"{value:.6g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def largest_lr(trainer: Trainer) -> float:
    """The learning rate: the largest, where groups of parameters have their own."""
    return max(group["lr"] for group in trainer.optimizers[0].param_groups)


def memory_gib(trainer: Trainer) -> float:
    """The most memory that was held so far, in GiB: on the GPU, or resident on a CPU. nan where nobody counts."""
    device = root_device(trainer)
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
    rows = [*read_rows(path), {key: number(value) for key, value in row.items()}]
    _write_rows(path, rows, list(dict.fromkeys(key for r in rows for key in r)))


def _write_rows(path: Path, rows: list[dict[str, str]], columns: list[str]) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
