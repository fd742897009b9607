"""What all tasks share: when the network is made, how it is optimised, where randomness comes from.

A task is a subclass that says how its network is built, what its loss is, and what is measured.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from ..data import Batch
from .data import TaskData
from .errors import TrainingError
from .metrics import Metrics
from .optimization import OptimizerConfig, ScheduleConfig, build_optimizer, build_schedule
from .resuming import change_batches, changed_length
from .summary import parameters_line
from .trainer import (
    any_rank,
    data_of,
    epochs_done,
    limit_of_batches,
    saved_epochs,
    sum_over_ranks,
    trainer_of,
    validate_at_the_end,
)


class Task(pl.LightningModule):
    """A network, its loss, its optimizer and its schedule.

    The network is built by `build()` when the trainer has read the data, on all ranks from the same seed. Without a
    trainer it is built when it is first used: `task.loss(batch)` then is a loss, and nothing else is needed.

    Every training step seeds Python's, NumPy's and torch's generators from (seed, epoch, batch, rank). What drop path
    and mixup draw therefore depends on the position in the run alone, and a resumed run equals an uninterrupted one.

    Args:
        optimizer: see `optimizer`.
        schedule: see `schedule`.
        seed: see `seed_everything`.
        grad_checkpointing: recompute blocks in the backward pass instead of keeping their activations.
        channels_last: keep images and weights in channels-last memory.
        compile: torch.compile the network.
    """

    network: nn.Module

    #: Channels of the images.
    in_chans: int = 3

    #: Of the folder whose `training.py` has the class.
    task_name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        package, _, module = cls.__module__.rpartition(".")
        if module == "training":
            cls.task_name = package.rpartition(".")[2]

    def __init__(
        self,
        *,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008  frozen
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        seed: int = 0,
        grad_checkpointing: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ):
        super().__init__()
        self.optimizer: OptimizerConfig = optimizer
        self.schedule: ScheduleConfig = schedule
        self.seed: int = seed
        self.grad_checkpointing: bool = grad_checkpointing
        self.channels_last: bool = channels_last
        self.compiled: bool = compile
        #: What the last validation of this epoch measured; empty in an epoch without one.
        self.measured: dict[str, float] = {}
        #: Set for a run that ended before its last step, by early stopping, and must not resume.
        self.ended = False
        self._lr_scale, self._updates_per_epoch = 1.0, 1
        #: Epochs of the run and optimizer steps of an epoch, once the optimizer is made.
        self.length: tuple[float, int] = (0.0, 1)
        self._losses: list[Tensor] = []
        self._loss_sum = self._loss_count = 0.0
        self._resumed, self._notes = False, list[str]()
        self._metrics: Metrics | None = None

    def build(self) -> nn.Module:
        """The network, before it is moved to a device. What it takes from the data, and what these must agree on with
        the task, is checked here."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar. The batch is on the network's device; nothing of it is changed."""
        raise NotImplementedError

    def metrics(self) -> Metrics:
        """What a validation measures, of no image yet."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of its network, in plain types: enough for the task's `prediction.py` to build it
        again. "data_config" is what its images have to be like, in timm's terms."""
        raise NotImplementedError

    def check_continues(self, before: Mapping[str, Any]) -> None:
        """Raise TrainingError, saying what differs, unless a checkpoint of that `description` is of this run."""
        found = self.description()
        for key in found:
            if before.get(key) != found[key]:
                raise TrainingError(f"the run's {key} is {before.get(key)!r}, and {found[key]!r} here")

    def describe(self) -> str:
        """The network in a line."""
        return f"{type(self.network).__name__}, {parameters_line(self.network)}"

    @property
    def has_data(self) -> bool:
        """Whether there are data to read from; a task that is used without a trainer has none."""
        return data_of(trainer_of(self)) is not None

    @property
    def data(self) -> TaskData:
        """What the task is trained on. Raises TrainingError without a trainer."""
        data = data_of(trainer_of(self))
        if not isinstance(data, TaskData):
            raise TrainingError(f"{type(self).__name__} belongs to no trainer with data: it can read none")
        return data

    @property
    def measures(self) -> tuple[str, ...]:
        """The names under which a validation logs its values, in the order of the alphabet."""
        return tuple(sorted(f"val/{name}" for name in self.metrics().values()))

    def note(self, text: str) -> None:
        """Tell the user, once for all ranks."""
        if trainer_of(self) is None:
            print(text)
        else:
            self.print(text)

    def configure_model(self) -> None:
        if "network" in self._modules:
            return
        pl.seed_everything(self.seed, verbose=False)
        network: Any = self.build()
        if self.grad_checkpointing:
            network.set_grad_checkpointing(True)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)
        if self.device_mesh is not None:
            shard(network, self.device_mesh)
        if self.compiled:
            network.compile()
        self.network = network

    def configure_optimizers(self) -> Any:
        epochs, per_epoch = self.length = self._length()
        if self.optimizer.lr_batch_size is not None:
            self._lr_scale = self.global_batch_size / self.optimizer.lr_batch_size
        optimizer = build_optimizer(
            self.network,
            self.optimizer,
            lr=self.optimizer.lr * self._lr_scale,
            fused="mixed" not in str(self.trainer.precision) and self.device_mesh is None,
        )
        schedule = build_schedule(
            optimizer, self.schedule, epochs=epochs, updates_per_epoch=per_epoch, scale=self._lr_scale
        )
        self._updates_per_epoch = per_epoch
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _length(self) -> tuple[float, int]:
        """Epochs of the run, and optimizer steps of an epoch. With `max_epochs`, `max_steps` only ends the run early.

        Not the trainer's `estimated_stepping_batches`: asking for it here would begin to read the data, before the
        trainer has restored where in the epoch the run was.
        """
        trainer = self.trainer
        try:
            batches = len(self.data.train_dataloader())
        except TypeError as error:
            raise TrainingError(
                "the length of an epoch is unknown: set data.num_samples for streamed data"
            ) from error
        limit = limit_of_batches(trainer)
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
        if batches == 0:
            raise TrainingError(
                f"no whole batch to train on: {self.images} images, {self.global_batch_size} to an optimizer step. "
                "Expected a smaller data.batch_size"
            )
        per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        if trainer.max_epochs is not None and trainer.max_epochs != -1:
            return float(trainer.max_epochs), per_epoch
        if trainer.max_steps == -1:
            raise TrainingError("a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        return trainer.max_steps / per_epoch, per_epoch

    @property
    def complete(self) -> bool:
        """Whether all of the run is done: `max_epochs` epochs, or without them `max_steps` steps."""
        return self._complete(self.epoch)

    def _complete(self, epochs: int) -> bool:
        trainer = self.trainer
        if trainer.max_epochs is not None and trainer.max_epochs != -1:
            return epochs >= trainer.max_epochs
        return trainer.global_step >= trainer.max_steps

    @property
    def images(self) -> int:
        """Images of an epoch."""
        return len(self.data.source("train"))

    @property
    def batch_size(self) -> int:
        """Images of a batch, over all devices."""
        return self.data.batch_size * self.trainer.world_size

    @property
    def global_batch_size(self) -> int:
        """Images per optimizer step, over all devices."""
        return self.batch_size * self.trainer.accumulate_grad_batches

    @property
    def lr_scale(self) -> float:
        """Factor between the learning rates of the recipe and those of this run, see `lr_batch_size`."""
        return self._lr_scale

    @property
    def epoch(self) -> int:
        """Epochs completed; 0 without a trainer."""
        trainer = trainer_of(self)
        return epochs_done(trainer) if trainer is not None else 0

    def on_fit_start(self) -> None:
        self.trainer.should_stop = self.ended

    def on_train_start(self) -> None:
        for note in self._notes:
            self.note(note)
        if self._resumed:
            # The optimizer brought the rate that the schedule gave before, which may have been another one.
            scheduler: Any = self.trainer.lr_scheduler_configs[0].scheduler
            self.lr_scheduler_step(scheduler, None)

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """scheduler: timm's, which is told where the run is."""
        assert isinstance(scheduler, Scheduler)
        if scheduler.t_in_epochs:
            scheduler.step(self.trainer.global_step // self._updates_per_epoch)
        else:
            scheduler.step_update(self.trainer.global_step)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        drawn = np.random.SeedSequence([self.seed, self.epoch, batch_idx, self.global_rank]).generate_state(1)
        seed = int(drawn[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  timm's mixup draws from it
        torch.manual_seed(seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        try:
            loss = self.loss(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                f"data.batch_size is {self.data.batch_size}: BatchNorm averages over a batch, and these images leave "
                "it one value of each channel. Expected at least 2, or larger images"
            ) from error
        self._losses.append(loss.detach())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = batch_idx + 1 >= self.trainer.num_training_batches
        if self._complete(self.epoch + last):
            validate_at_the_end(self.trainer)

    def on_train_epoch_start(self) -> None:
        self.measured = {}
        self._losses.clear()
        self._loss_sum = self._loss_count = 0.0

    def on_validation_epoch_start(self) -> None:
        self._metrics = self.metrics()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert self._metrics is not None
        self._metrics.update(self(batch.images), batch)

    def on_validation_epoch_end(self) -> None:
        assert self._metrics is not None
        found = self._metrics.reduce().values()
        self._metrics = None
        self.log_dict({f"val/{name}": value for name, value in found.items()}, rank_zero_only=False)

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.measured = {
                name: float(value) for name, value in sorted(self.trainer.callback_metrics.items())
            }

    def mean_loss(self, *, everywhere: bool = False) -> float:
        """Mean training loss of the epoch so far: this rank's, or all ranks' if all of them ask `everywhere`.

        The losses wait on their device until somebody asks, so that training does not wait for each of them.
        """
        if self._losses:
            losses = torch.stack(self._losses).double().tolist()
            self._losses.clear()
            self._loss_sum += sum(losses)
            self._loss_count += len(losses)
        total, count = self._loss_sum, self._loss_count
        if everywhere:
            total, count = sum_over_ranks(self.trainer, total, count)
        return total / max(1.0, count)

    def check_finite(self) -> None:
        """Raise TrainingError, on all ranks, if any rank has met a loss that is not finite. To be called by all."""
        mean = self.mean_loss()
        if any_rank(self.trainer, not math.isfinite(mean)):
            raise TrainingError(
                f"the training loss is {mean} in epoch {self.epoch}, at or before step {self.trainer.global_step}. "
                "A lower optimizer.lr, a longer schedule.warmup_epochs, trainer.gradient_clip_val or "
                "trainer.precision bf16-mixed instead of 16-mixed may help"
            )

    def forward(self, images: Tensor) -> Any:
        """The network's output for images (B, C, H, W)."""
        self.configure_model()
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.network(images)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ganglion"] = {"task": self.task_name} | self.description()
        self.mean_loss()
        total, count = sum_over_ranks(self.trainer, self._loss_sum, self._loss_count)
        checkpoint["epoch_losses"] = {"sum": total, "count": count}
        checkpoint["measured"] = dict(self.measured)
        checkpoint["length"] = self._run_length()
        checkpoint["batch"] = self._batches()
        checkpoint["ended"] = self.trainer.should_stop and not self.complete

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise TrainingError if the checkpoint is of another run."""
        done, epochs = saved_epochs(checkpoint), self._length()[0]
        if done > epochs:
            raise TrainingError(f"the run has {done} epochs behind it, and is to end after {epochs:g}")
        before = dict(checkpoint["ganglion"])
        if (name := before.pop("task", "classification")) != self.task_name:
            raise TrainingError(f"the run's task is {name!r}, and {self.task_name!r} here")
        self.check_continues(before)
        losses, ranks = checkpoint["epoch_losses"], self.trainer.world_size
        self._loss_sum, self._loss_count = losses["sum"] / ranks, losses["count"] / ranks
        self.measured = dict(checkpoint.get("measured", {}))
        # The schedule is a function of the recipe and the step, not of what an earlier recipe made of it.
        checkpoint["lr_schedulers"] = []
        self._resumed = True
        if (
            "length" not in checkpoint
        ):  # of an earlier version: taken to be as long, in batches of the same size
            return
        self._notes += changed_length(checkpoint["length"], self._run_length())
        processes, accumulated = self.data.processes, self.trainer.accumulate_grad_batches
        change_batches(checkpoint, self._batches(), self.images, processes.world_size, accumulated)

    def _run_length(self) -> dict[str, int]:
        epochs, per_epoch = self._length()
        return {"steps": round(epochs * per_epoch), "images": self.images}

    def _batches(self) -> dict[str, int]:
        return {"step": self.global_batch_size, "batch": self.batch_size}


def shard(network: nn.Module, mesh: Any) -> None:
    """Shard parameters over the data-parallel dimension of the mesh (FSDP2): blocks are gathered when they run, what is
    in no block with the network, for its own `loss` too."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for stage in getattr(network, "stages", ()):
        for block in getattr(stage, "blocks", ()):
            fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(network, mesh=mesh["data_parallel"])
    if hasattr(network, "loss"):
        register_fsdp_forward_method(network, "loss")
