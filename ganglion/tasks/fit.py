"""`ganglion fit`: Lightning's command line over a task, its data, its optimizer and its schedule.

Every field of a recipe is an option of the command and the other way round. A run lives in one folder:

    config.yaml     the recipe with every field
    log.csv         a row for every epoch
    checkpoints/    the last few, and the best
    model/          the trained network (model.safetensors, config.json)
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..data import DataError
from ..errors import unknown
from ..models import CheckpointError
from .averaging import EMA
from .checkpoints import AtomicCheckpointIO, Checkpoints, Interrupted, last_good, list_checkpoints
from .export import export
from .guard import Guard
from .messages import in_options, parser_error
from .optimization import OptimizerConfig, ScheduleConfig
from .progress import Progress
from .task import Task, TrainingError, rank_of_environment

#: What can be trained: its module in this package, its task, its data.
TASKS = {"classification": ("classification", "Classification", "ClassificationData")}

_DEFAULTS = {
    "trainer.max_epochs": 10,
    "trainer.logger": False,
    "trainer.num_sanity_val_steps": 0,
    "trainer.enable_model_summary": False,
    "trainer.use_distributed_sampler": False,
    "trainer.log_every_n_steps": 50,
}

#: What may differ between a run and its continuation. The data see to the batch: it may be shared by more devices.
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


class FitCLI(LightningCLI):
    """The parser of `ganglion fit`. Everything is instantiated at construction; `run()` trains."""

    def __init__(self, task: type[Task], data: type[LightningDataModule], argv: Sequence[str]):
        self._argv = list(argv)
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
            help="go on with the run in FOLDER (the last one if none is named)",
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
        parser.set_defaults(_DEFAULTS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(self._argv)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        if config["use_distributed_sampler"]:
            raise ValueError(
                "trainer.use_distributed_sampler is true: expected false, the data are sampled here"
            )
        extra = [self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys]
        callbacks: list[Callback] = [c for c in extra if not (isinstance(c, EMA) and c.decay == 0)]
        if any(isinstance(c, EMA) for c in callbacks) and "ModelParallel" in str(config["strategy"]):
            raise ValueError(
                "ema.decay: sharded weights are not averaged; set it to 0, or use trainer.strategy ddp"
            )
        callbacks.append(Guard(self.datamodule.max_broken))  # pyright: ignore
        config["default_root_dir"] = self.config["output"]
        config["plugins"] = [*_listed(config["plugins"]), AtomicCheckpointIO()]
        return self._instantiate_trainer(config, callbacks)

    def run(self) -> None:
        """Train from the last good checkpoint of the output folder, or from the beginning, and export the network."""
        trainer, output = self.trainer, Path(self.config["output"])
        if trainer.strategy.root_device.type == "cpu":
            leave_cores(trainer.num_devices, self.datamodule.workers)  # pyright: ignore
        checkpoint = last_good(output / "checkpoints")
        if checkpoint is None and list_checkpoints(output / "checkpoints"):
            raise CheckpointError(f"none of the checkpoints in {output / 'checkpoints'} can be read")
        if checkpoint is not None:
            self._check_same_run(output / "config.yaml")
            _tell(f"resuming from {checkpoint}")
        if trainer.is_global_zero:
            self._save_config(output / "config.yaml")
        trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=checkpoint)

        network = _whole_network(self.model)  # pyright: ignore
        if trainer.is_global_zero:
            description = self.model.description()  # pyright: ignore
            names = {key: description[key] for key in ("data_config", "class_names")}
            export(network, output / "model", **names)
            _tell(f"trained; the network is in {output / 'model'}")

    def _save_config(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(self._dump())
        os.replace(temporary, path)

    def _dump(self) -> str:
        config = self.config.clone()
        config.pop("config", None)
        config.pop("resume", None)
        return self.parser.dump(config, skip_link_targets=True, skip_unset=False, skip_validation=True)

    def _check_same_run(self, path: Path) -> None:
        """Raise ValueError if the folder's run was made with other settings."""
        if not path.exists():
            return
        before, now = _flat(yaml.safe_load(path.read_text())), _flat(yaml.safe_load(self._dump()))
        changed = [
            f"{key} ({before.get(key)!r} there, {now.get(key)!r} here)"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(_FREE)
        ]
        if changed:
            raise ValueError(
                f"{path.parent} holds a run with other settings: {', '.join(changed)}. Choose another --output, or go "
                f"on with that run as it is: ganglion fit --resume {path.parent}"
            )


def leave_cores(processes: int, workers: int) -> None:
    """Have PyTorch compute on no more threads than there are cores for: not on those of the loader's workers.

    Threads wait for each other at every operation, so that one without a core holds up all.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores // processes - workers)))


def main(argv: Sequence[str]) -> int:
    """Run `ganglion fit`. Returns the exit status: 1 for what a user can mend, 128 + signal for an interrupted run."""
    quiet_lightning()
    try:
        argv = _resume(list(argv))
        task, data = _task(argv)
        FitCLI(task, data, argv).run()
    except Interrupted as stop:
        if rank_of_environment() != 0:
            return 0
        _tell(f"{stop}\nto go on: ganglion fit --resume {stop.path.parent.parent}")
        return 128 + stop.signum
    except (ArgumentError, yaml.YAMLError) as error:
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


def _task(argv: Sequence[str]) -> tuple[type[Task], type[LightningDataModule]]:
    """The classes of the task that the arguments, or the recipes they name, choose."""
    name = "classification"
    for i, word in enumerate(argv):
        option, equals, rest = word.partition("=")
        value = rest if equals else "".join(argv[i + 1 : i + 2])
        if option in ("--config", "-c") and Path(value).is_file():
            recipe = yaml.safe_load(Path(value).read_text())
            name = recipe.get("task", name) if isinstance(recipe, dict) else name
        elif option == "--task":
            name = value
    if name not in TASKS:
        raise ValueError("task: " + unknown("task", name, TASKS))
    module, task, data = TASKS[name]
    found = importlib.import_module(f".{module}", __package__)
    return getattr(found, task), getattr(found, data)


def quiet_lightning() -> None:
    """Leave out what Lightning says of its own workings; its warnings about the run stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*treespec, LeafSpec",
        r".*does not have many workers",
        r".*`weights_only` was not set",
        r".*smaller than the logging interval",
        r"(?s).*JsonargparseDeprecationWarning",
        r"(?s).*``instantiate_classes`` was deprecated",
        r".*Grad strides do not match bucket view",  # two ways to write the strides of depthwise kernels
        r".*sync_dist=True",  # the metrics are sums over all ranks before they are logged
        # Ours begin where they stopped; Lightning only knows loaders that say so by a state_dict.
        r".*your dataloader is not resumable",
    ):
        warnings.filterwarnings("ignore", message=message)


def _whole_network(task: Task) -> torch.nn.Module:
    """The network with all of its weights on this rank. Called on all ranks."""
    if task.device_mesh is None:
        return task.network
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(
        task.network, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if not task.trainer.is_global_zero:
        return task.network
    network = task.build()
    network.load_state_dict(weights)
    return network


def _listed(value: Any) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    if not isinstance(config, dict):
        return {prefix: config}
    parts = (_flat(value, f"{prefix}.{key}" if prefix else key) for key, value in config.items())
    return {key: value for part in parts for key, value in part.items()}


def _tell(text: str) -> None:
    if rank_of_environment() == 0:
        print(text, flush=True)
