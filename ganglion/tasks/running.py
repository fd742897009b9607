"""One run in one folder: what there is to resume from is looked for, all is checked, then it trains and exports.

Nothing is written before the trainer has taken everything: a command that is refused leaves the folder as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from ..data import DataError
from ..errors import unknown
from ..models import CheckpointError
from ..recipes import renamed
from ..training.data import TaskData
from ..training.errors import TrainingError
from ..training.exported_folder import export
from ..training.run_checkpoints import AtomicCheckpointIO, checkpoint_path, newest_good, read_checkpoint
from ..training.run_folder import RunFolder
from ..training.saving import Checkpoints, Interrupted
from ..training.task import Task
from ..training.trainer import callbacks_of, rank_of_environment, saved_epochs
from . import TaskFolder
from .loaded_model import from_training

#: What may differ between a run and its continuation. The task sees to the batch, which may be shared by more devices.
_FREE = (
    "output",
    "data.root",
    "data.workers",
    "data.batch_size",
    "data.val_batch_size",
    "progress",
    "checkpoint",
    "trainer",
)

_EXPECTED = (Interrupted, TrainingError, CheckpointError, DataError, OSError, ValueError)


class Recorder(Callback):
    """Writes config.yaml once the run has begun: before the first step of a new run, after the first of a resumed one.

    So a command that fails at its start leaves the record of the run as it was.
    """

    def __init__(self) -> None:
        self.started: bool = False
        self._write: Callable[[], None] | None = None
        self._resumed = False

    def prepare(self, write: Callable[[], None], *, resumed: bool) -> None:
        self._write, self._resumed = write, resumed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = True
        if not self._resumed:
            self._record(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._record(trainer)

    def _record(self, trainer: Trainer) -> None:
        if self._write is not None and trainer.is_global_zero:
            self._write()
        self._write = None


def run(
    trainer: Trainer,
    task: Task,
    data: TaskData,
    *,
    folder: RunFolder,
    config: str,
    defaults: str,
    tell: Callable[[str], None],
    task_folder: TaskFolder,
) -> None:
    """Train from the newest good checkpoint of the folder, or from the beginning, and export the network.

    trainer: with an `AtomicCheckpointIO`, `Checkpoints` and a `Recorder`. config: the recipe with every field, as YAML;
    defaults: likewise of one that says nothing.
    task_folder: where the task is from.

    Raises Interrupted where training ended before the end of the run; TrainingError, CheckpointError, DataError,
    OSError or ValueError for what a user can mend.
    """
    first = rank_of_environment() == 0
    with folder.held(tell) if first else nullcontext():
        if first:
            folder.check_ours()
        _run(trainer, task, data, folder, config, defaults, tell, task_folder)


def _run(
    trainer: Trainer,
    task: Task,
    data: TaskData,
    folder: RunFolder,
    config: str,
    defaults: str,
    tell: Callable[[str], None],
    task_folder: TaskFolder,
) -> None:
    (recorder,) = (c for c in callbacks_of(trainer) if isinstance(c, Recorder))
    io = trainer.strategy.checkpoint_io
    assert isinstance(io, AtomicCheckpointIO)
    check_monitors(trainer, task, validates="val" in data.parts)
    path = None
    if (found := newest_good(folder.checkpoints)) is not None:
        path, io.content = found
        io.path = path
        changed = _changed(folder.config, config, defaults)
        if refused := [change for change in changed if not change.startswith(_FREE)]:
            raise ValueError(
                f"{folder.path} holds a run with other settings: {', '.join(refused)}. Choose another --output, or go "
                f"on with that run as it is: ganglion fit --resume {folder.path}"
            )
        # A run that a callback ended early stays ended, until it gets other callbacks or another length.
        task.ended = io.content.get("ended") is True and not any(c.startswith("trainer") for c in changed)
        tell(f"resuming from {path}")
    del found
    recorder.prepare(lambda: folder.write_config(config), resumed=path is not None)
    try:
        trainer.fit(task, datamodule=data, ckpt_path=path)
    except _EXPECTED:
        raise
    except Exception as error:
        if (said := explain(error)) is not None:
            raise TrainingError(said) from error
        if path is not None and not recorder.started:
            raise CheckpointError(
                f"the run cannot resume from {path}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            ) from error
        raise
    finally:
        io.content = None

    if not trainer.is_global_zero:
        return
    last = checkpoint_path(folder.checkpoints, trainer.global_step)
    if not (task.complete or trainer.should_stop):
        raise Interrupted(f"trainer.max_steps {trainer.max_steps} is reached", last)
    # Not the network in memory: what is exported is a function of the checkpoint alone.
    content = read_checkpoint(last)
    trained = from_training(content, str(last), task_folder)
    history = {**trained.training, "epochs": saved_epochs(content), "recipe": _recipe(config, defaults)}
    export(trained.network, folder.model, content["ganglion"], history)
    tell(f"trained; the network is in {folder.model}")


def check_monitors(trainer: Trainer, task: Task, *, validates: bool) -> None:
    """Raise ValueError if a callback monitors what the task does not measure."""
    measured = task.measures if validates and trainer.limit_val_batches != 0 else ()
    for callback in callbacks_of(trainer):
        monitor = getattr(callback, "monitor", None)
        ours = isinstance(callback, Checkpoints)
        if not isinstance(monitor, str) or monitor in measured or (ours and not measured):
            continue
        name = "checkpoint" if ours else type(callback).__name__
        if not measured:
            raise ValueError(
                f"{name}.monitor is {monitor!r}, and this run measures nothing: it has no validation"
            )
        raise ValueError(f"{name}.monitor: {unknown('metric', monitor, measured)}")


def explain(error: Exception) -> str | None:
    """What a failure of the machine means, and what to do about it; None for any other."""
    text = str(error)
    line = text.strip().partition("\n")[0]
    intact = "Checkpoints already written are intact, and the same command resumes"
    if "DataLoader worker" in text and ("killed" in text or "exited" in text or "shared memory" in text):
        return (
            f"a worker was killed ({line}), as happens when memory runs out. Expected fewer data.workers, a smaller "
            f"data.batch_size, or more (shared) memory. {intact}"
        )
    if (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "DefaultCPUAllocator" in text
        or "Caught MemoryError" in text
    ):
        return (
            f"out of memory ({line}). Expected a smaller data.batch_size, with trainer.accumulate_grad_batches to make "
            f"up for it, or model.grad_checkpointing true. {intact}"
        )
    return None


def _changed(path: Path, config: str, defaults: str) -> list[str]:
    """The settings of a recorded recipe that differ from those of another, each with both values. What an earlier
    version did not know has its default there."""
    try:
        recorded = renamed(yaml.safe_load(path.read_text()), str(path))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from error
    before, now = _flat(yaml.safe_load(defaults)) | _flat(recorded), _flat(yaml.safe_load(config))
    return [
        f"{key} ({before.get(key)!r} there, {now.get(key)!r} here)"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _recipe(config: str, defaults: str) -> dict[str, Any]:
    """The seed, the data's name, and what else a recipe sets that cannot differ between a run and its continuation: so
    that an export stays a function of the checkpoint. Of files on this machine only names: exports are published."""
    default = _flat(yaml.safe_load(defaults))
    return {
        key: Path(value).name if key == "data.root" or os.path.isabs(str(value)) else value
        for key, value in _flat(yaml.safe_load(config)).items()
        if key in ("seed_everything", "data.root")
        or (value != default.get(key) and not key.startswith(_FREE))
    }


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    if not isinstance(config, Mapping):
        return {prefix: config}
    parts: Iterable[dict[str, Any]] = (
        _flat(value, f"{prefix}.{key}" if prefix else key) for key, value in config.items()
    )
    return {key: value for part in parts for key, value in part.items()}
