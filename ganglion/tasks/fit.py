"""`ganglion fit`: Lightning's command line over a task, its data, its optimizer and its schedule.

Every field of a recipe is an option of the command and the other way round. A run lives in one folder:

    config.yaml     the recipe with every field
    log.csv         a row for every epoch
    checkpoints/    the last few, and the best
    model/          the trained network (model.safetensors, config.json)
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from jsonargparse._common import parsing_settings
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..config import check_range
from ..data import DataError
from ..errors import unknown
from ..models import CheckpointError
from ..recipes import OPTIONS, chain, with_bases
from ..training.averaging import EMA
from ..training.data import TaskData
from ..training.errors import TrainingError
from ..training.guard import Guard
from ..training.messages import in_options, parser_error, profile_last, quiet_libraries
from ..training.optimization import OptimizerConfig, ScheduleConfig
from ..training.progress import Progress
from ..training.run_checkpoints import AtomicCheckpointIO
from ..training.run_folder import RunFolder
from ..training.saving import Checkpoints, Interrupted
from ..training.summary import next_steps
from ..training.task import Task
from ..training.trainer import rank_of_environment, root_device
from . import DEFAULT, TASKS, TaskFolder, find_task
from .running import Recorder, run

_DEFAULTS = {
    "trainer.logger": False,
    "trainer.num_sanity_val_steps": 0,
    "trainer.enable_model_summary": False,
    "trainer.use_distributed_sampler": False,
    "trainer.log_every_n_steps": 50,
}

#: Packages whose classes a recipe may name.
_OURS = ("lightning", "ganglion")

#: What the help says of these fields, where Lightning's words are not true of this command.
_HELP = {
    "trainer.max_epochs": "epochs of the run; 10 where neither this nor `trainer.max_steps` is set. -1: no bound",
    "trainer.max_steps": "end the run after this many optimizer steps. -1: no bound",
    "trainer.max_time": "end the run after this long, DD:HH:MM:SS; the same command resumes it",
    "trainer.default_root_dir": "not used: the run's folder is `output`",
    "trainer.overfit_batches": "not used: see `data.train_limit`",
    "trainer.use_distributed_sampler": "not used: the data are sampled here",
    "trainer.reload_dataloaders_every_n_epochs": "not used: the data stay the same",
    "trainer.enable_progress_bar": "not used: see `progress`",
    "trainer.enable_checkpointing": "not used: see `checkpoint`",
}

#: Epochs of a run that sets neither `max_epochs` nor `max_steps`.
_EPOCHS = 10


#: What is done with the exported folder of a task when a run is over.
Finished = Callable[[Path, str], None]


class FitCLI(LightningCLI):
    """The parser of `ganglion fit`. Everything is instantiated at construction; `run()` trains."""

    def __init__(
        self,
        task: type[Task],
        data: type[TaskData],
        argv: Sequence[str],
        finished: Finished | None = None,
    ):
        self._finished = finished
        self._argv = with_bases(argv)
        self._task = task_folder(task)
        self._scratch: TemporaryDirectory[str] | None = None
        super().__init__(
            task,
            data,
            run=False,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "ganglion fit", "exit_on_error": False},
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Nothing: `add_arguments_to_parser` adds them among the others, in the order of the help."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Nothing, as above."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="where all randomness comes from")
        parser.add_argument("--task", default="classification", help="what is trained")
        parser.add_argument("--output", default="outputs/fit", help="the run's folder")
        parser.add_argument(
            "--resume",
            nargs="?",
            const="",
            metavar="FOLDER",
            help="resume the run in FOLDER (the last one if none is named)",
        )
        parser.add_argument(
            "--allow-code",
            action="store_true",
            help="let trainer.* name classes of other packages than Lightning and this one; their code then runs",
        )
        parser.add_lightning_class_args(self._model_class, "model")
        parser.add_lightning_class_args(self._datamodule_class, "data")
        parser.add_class_arguments(OptimizerConfig, "optimizer")
        parser.add_class_arguments(ScheduleConfig, "schedule")
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(Progress, "progress")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.link_arguments("optimizer", "model.optimizer", apply_on="instantiate")
        parser.link_arguments("schedule", "model.schedule", apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")
        name, mode = self._task.metrics.MONITOR
        monitor = {"checkpoint.monitor": f"val/{name}", "checkpoint.mode": mode}
        parser.set_defaults(_DEFAULTS | monitor)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config: Namespace = parser.parse_args(self._argv)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (
            TrainingError,
            DataError,
            MisconfigurationException,
            OSError,
            ValueError,
            torch.OutOfMemoryError,
        ):
            raise
        except Exception as error:  # the trainer's classes refuse what they are given by errors of any type
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        _check_trainer(config)
        extra = [self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys]
        callbacks: list[Callback] = [c for c in extra if not (isinstance(c, EMA) and c.decay == 0)]
        if any(isinstance(c, EMA) for c in callbacks) and "ModelParallel" in str(config["strategy"]):
            raise ValueError(
                "ema.decay: sharded weights are not averaged; set it to 0, or use trainer.strategy ddp"
            )
        callbacks += [Guard(self.data.max_unreadable), Recorder()]
        if config["max_epochs"] is None:
            config["max_epochs"] = _EPOCHS if config["max_steps"] == -1 else -1
        seconds = _seconds(config.pop("max_time"))
        for callback in callbacks:
            if isinstance(callback, Checkpoints):  # which ends with a checkpoint, unlike Lightning's timer
                callback.max_seconds = seconds
        if config["fast_dev_run"]:
            self._scratch = TemporaryDirectory(prefix="ganglion-")
        config["default_root_dir"] = self._scratch.name if self._scratch else self.config["output"]
        config["plugins"] = [*_listed(config["plugins"]), AtomicCheckpointIO()]
        return self._instantiate_trainer(config, callbacks)

    def run(self) -> None:
        """Train and export, see `running.run`. A dry run does so in a folder that is removed."""
        task = self.model
        assert isinstance(task, Task)
        if root_device(self.trainer).type == "cpu":
            leave_cores(self.trainer.num_devices, self.data.workers)
        folder = RunFolder(Path(self.trainer.default_root_dir))
        try:
            run(
                self.trainer,
                task,
                self.data,
                folder=folder,
                config=self._dump(),
                defaults=self._dump(self.parser.get_defaults()),
                tell=_tell,
                task_folder=self._task,
            )
        finally:
            if self._scratch is not None:
                self._scratch.cleanup()
        if self._scratch is not None:
            _tell("trainer.fast_dev_run: all went well, and nothing of it was kept")
        else:
            foreign = "" if self._task.name in TASKS else f" --task {shlex.quote(self.config['task'])}"
            if self._finished is not None and rank_of_environment() == 0:
                self._finished(
                    folder.model, self._task.name if self._task.name in TASKS else self.config["task"]
                )
            _tell(next_steps(folder.model, self.data, foreign))

    @property
    def data(self) -> TaskData:
        assert isinstance(self.datamodule, TaskData)
        return self.datamodule

    def _dump(self, config: Namespace | None = None) -> str:
        """As YAML; the recipe of this run where no other is given."""
        dumped: Any = self.config if config is None else config
        config = _plain(dumped.clone())
        assert config is not None
        config.pop("config", None)
        config.pop("resume", None)
        config.pop("allow_code", None)  # never a recipe's to say
        config["task"] = self._task.name  # nor where a task is
        return self.parser.dump(config, skip_link_targets=True, skip_unset=False, skip_validation=True)


def _check_trainer(config: Mapping[str, Any]) -> None:
    """Raise ValueError for what Lightning would take, and this command cannot do."""
    if config["use_distributed_sampler"]:
        raise ValueError("trainer.use_distributed_sampler is true: expected false, the data are sampled here")
    if config["overfit_batches"]:
        raise ValueError(
            f"trainer.overfit_batches is {config['overfit_batches']}: expected 0; data.train_limit N trains on the "
            "first N images"
        )
    if config["reload_dataloaders_every_n_epochs"]:
        raise ValueError("trainer.reload_dataloaders_every_n_epochs: expected 0, the data stay the same")
    for name, low in (
        ("accumulate_grad_batches", 1),
        ("check_val_every_n_epoch", 1),
        ("log_every_n_steps", 1),
        ("gradient_clip_val", 0),
        ("max_epochs", -1),
        ("max_steps", -1),
    ):
        check_range(f"trainer.{name}", config[name], low)
    for name in ("max_epochs", "max_steps"):
        if config[name] == 0:
            raise ValueError(f"trainer.{name} is 0: expected at least 1")


def _seconds(max_time: Any) -> float | None:
    """Seconds of `trainer.max_time`, in whichever way Lightning lets it be written."""
    seconds = Timer(duration=max_time).time_remaining()
    check_range("trainer.max_time", seconds, above=0)
    return seconds


@contextmanager
def limited_imports(packages: Sequence[str] | None) -> Iterator[None]:
    """Let the parser import nothing that a recipe names from other packages. None: let it import anything."""
    policy = ("import_path_verdicts", "import_paths_enforced")
    before = {name: parsing_settings[name] for name in policy}
    try:
        if packages is not None:
            set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(packages))
        else:
            parsing_settings.update(import_path_verdicts={}, import_paths_enforced=False)
        yield
    finally:
        parsing_settings.update(before)  # it is one policy for all parsers of the process


def leave_cores(processes: int, workers: int) -> None:
    """Have PyTorch compute on no more threads than there are cores for: not on those of the loader's workers.

    Threads wait for each other at every operation, so that one without a core holds up all.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores // processes - workers)))


def main(argv: Sequence[str], finished: Finished | None = None) -> int:
    """Run `ganglion fit`. Returns the exit status: 1 for what a user can mend, 128 + signal for an interrupted run.

    finished: is given the exported folder, and the task's name or folder, when the run has come to its end.

    With GANGLION_TRACEBACK set, what a user can mend raises.
    """
    quiet_libraries()
    try:
        argv = _resume(list(argv))
        task, data = _task(argv)
        with profile_last(), limited_imports(_OURS if "--allow-code" not in argv else None):
            FitCLI(task, data, argv, finished).run()
    except Interrupted as stop:
        if rank_of_environment() != 0:
            return 0
        _tell(f"{stop}\nto resume: ganglion fit --resume {stop.path.parent.parent}")
        return 0 if stop.signum is None else 128 + stop.signum
    except (ArgumentError, yaml.YAMLError) as error:
        if os.environ.get("GANGLION_TRACEBACK"):
            raise
        print(f"ganglion fit: error: {in_options(parser_error(str(error)), argv)}", file=sys.stderr)
        return 2
    except (
        TrainingError,
        CheckpointError,
        DataError,
        MisconfigurationException,
        OSError,
        ValueError,
        torch.OutOfMemoryError,
    ) as error:
        if os.environ.get("GANGLION_TRACEBACK"):
            raise
        print(f"ganglion fit: error: {in_options(str(error), argv)}", file=sys.stderr)
        return 1
    return 0


def _resume(argv: list[str]) -> list[str]:
    """Put the settings of the run that `--resume` names before the other arguments, unless they name a recipe."""
    flags = [i for i, word in enumerate(argv) if word == "--resume" or word.startswith("--resume=")]
    if not flags:
        return argv
    i = flags[-1]
    folder = argv[i].partition("=")[2]
    if not folder and i + 1 < len(argv) and not argv[i + 1].startswith("-"):
        folder = argv[i + 1]
    if not folder:
        if any(word.startswith(("--config", "-c", "--output")) for word in argv):
            return argv
        runs = sorted(Path("outputs").glob("**/config.yaml"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise ValueError("--resume: there is no run below outputs/: name its folder, --resume FOLDER")
        folder = str(runs[-1].parent)
    config = Path(folder) / "config.yaml"
    if not config.is_file():
        raise ValueError(f"--resume {folder}: expected the folder of a run, with a config.yaml")
    return ["--config", str(config), "--output", folder, *argv]


def task_folder(task: type[Task]) -> TaskFolder:
    """Where a task's class is from: the nearest in its ancestry that is in a file named training.py."""
    modules = [one.__module__.rpartition(".") for one in task.__mro__]
    return TaskFolder(next(package for package, _, module in modules if module == "training"))


def _task(argv: Sequence[str]) -> tuple[type[Task], type[TaskData]]:
    """The classes of the task that the arguments choose, or the recipes they name; a recipe only by its name."""
    name, recipes = None, DEFAULT
    for i, word in enumerate(argv):
        option, equals, rest = word.partition("=")
        value = rest if equals else "".join(argv[i + 1 : i + 2])
        if option in OPTIONS and Path(value).is_file():
            named = (recipe["task"] for _, recipe in reversed(chain(value)) if "task" in recipe)
            recipes = next(named, recipes)
        elif option == "--task":
            name = value
    if name is None:
        if recipes not in TASKS:
            raise ValueError(
                "task: " + unknown("task", recipes, TASKS) + " Others are named by --task FOLDER."
            )
        name = recipes
    training = find_task(name).training
    return training.TASK, training.DATA


def _plain(value: Any) -> Any:
    """Enumerations, which some of Lightning's defaults are and YAML does not know, as what they stand for."""
    if isinstance(value, Namespace):
        for key, inside in vars(value).items():
            setattr(value, key, _plain(inside))
    elif isinstance(value, dict):
        return {key: _plain(inside) for key, inside in value.items()}
    elif isinstance(value, list):
        return [_plain(inside) for inside in value]
    elif isinstance(value, Enum):
        return value.value
    return value


def _listed(value: Any) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def _tell(text: str) -> None:
    if rank_of_environment() == 0:
        print(text, flush=True)
