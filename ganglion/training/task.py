"""What all tasks share: when the network is made, how it is optimised, where randomness comes from.

A task is a subclass that says how its network is built, and what a training and a validation step are.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from .optimization import OptimizerConfig, ScheduleConfig, build_optimizer, build_schedule


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, and what to change. Checkpoints already written are intact."""


class Task(pl.LightningModule):
    """A network, its optimizer and its schedule.

    The network is built by `build()` when the trainer has read the data, on all ranks from the same seed.

    Every training step seeds Python's, NumPy's and torch's generators from (seed, epoch, batch, rank). What drop path
    and mixup draw therefore depends on the place in the run alone, and a resumed run equals an uninterrupted one.
    """

    network: nn.Module

    #: What a validation measures: the names of the logged values.
    METRICS: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        seed: int,
        grad_checkpointing: bool,
        channels_last: bool,
        compile: bool,
    ):
        super().__init__()
        self.optimizer, self.schedule, self.seed = optimizer, schedule, seed
        self.grad_checkpointing, self.channels_last, self.compiled = (
            grad_checkpointing,
            channels_last,
            compile,
        )
        #: What the last validation of this epoch measured; empty in an epoch without one.
        self.measured: dict[str, float] = {}
        #: Set for a run that ended before its last step, by early stopping, and is not to go on.
        self.ended = False
        self._lr_scale, self._updates_per_epoch = 1.0, 1
        #: Epochs of the run and optimizer steps of an epoch, once the optimizer is made.
        self.length = (0.0, 1)
        self._losses: list[Tensor] = []
        self._loss_sum = self._loss_count = 0.0
        self._resumed, self._notes = False, list[str]()

    def build(self) -> nn.Module:
        """The network, before it is moved to a device."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """The training loss of a batch, a scalar."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of its network, in plain types: enough to build it again without this task."""
        raise NotImplementedError

    def check_continues(self, before: Mapping[str, Any]) -> None:
        """Raise TrainingError, saying what differs, unless a checkpoint of that `description` is of this run."""
        raise NotImplementedError

    def configure_model(self) -> None:
        if "network" in self._modules:
            return
        pl.seed_everything(self.seed, verbose=False)
        network = self.build()
        if self.grad_checkpointing:
            network.set_grad_checkpointing(True)  # pyright: ignore
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore
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
            batches = len(trainer.datamodule.train_dataloader())  # pyright: ignore
        except TypeError as error:
            raise TrainingError(
                "the length of an epoch is unknown: set data.num_samples for streamed data"
            ) from error
        limit = trainer.limit_train_batches
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)  # pyright: ignore
        if batches == 0:
            raise TrainingError(
                f"no whole batch to train on: {len(trainer.datamodule.source('train'))} images, "  # pyright: ignore
                f"{self.global_batch_size} to an optimizer step. Expected a smaller data.batch_size"
            )
        per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        if trainer.max_epochs not in (None, -1):
            return float(trainer.max_epochs), per_epoch  # pyright: ignore
        if trainer.max_steps == -1:
            raise TrainingError("a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        return trainer.max_steps / per_epoch, per_epoch

    @property
    def complete(self) -> bool:
        """Whether all of the run is done: `max_epochs` epochs, or without them `max_steps` steps."""
        return self._complete(self.epoch)

    def _complete(self, epochs: int) -> bool:
        trainer = self.trainer
        if trainer.max_epochs not in (None, -1):
            return epochs >= trainer.max_epochs  # pyright: ignore
        return trainer.global_step >= trainer.max_steps

    @property
    def global_batch_size(self) -> int:
        """Images per optimizer step, over all devices."""
        trainer = self.trainer
        return trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches  # pyright: ignore

    @property
    def lr_scale(self) -> float:
        """Factor between the learning rates of the recipe and those of this run, see `lr_batch_size`."""
        return self._lr_scale

    @property
    def epoch(self) -> int:
        """Epochs completed, as the samplers count them (`current_epoch` lags behind in a run resumed by steps)."""
        return self.trainer.fit_loop.epoch_progress.current.processed  # pyright: ignore

    def on_fit_start(self) -> None:
        self.trainer.should_stop = self.ended

    def on_train_start(self) -> None:
        for note in self._notes:
            self.print(note)
        if self._resumed:
            # The optimizer brought the rate that the schedule gave before, which may have been another one.
            self.lr_scheduler_step(self.trainer.lr_scheduler_configs[0].scheduler, None)  # pyright: ignore

    def lr_scheduler_step(self, scheduler: Scheduler, metric: Any | None) -> None:  # pyright: ignore
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
            size = self.trainer.datamodule.batch_size  # pyright: ignore
            raise TrainingError(
                f"data.batch_size is {size}: BatchNorm averages over a batch, and these images leave it one value "
                "of each channel. Expected at least 2, or larger images"
            ) from error
        self._losses.append(loss.detach())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = batch_idx + 1 >= self.trainer.num_training_batches
        if self._complete(self.epoch + last):
            # The trainer validates before it stops, whatever the interval, also where the run ends within an epoch.
            self.trainer.should_stop = True
            self.trainer.check_val_every_n_epoch = 1

    def on_train_epoch_start(self) -> None:
        self.measured = {}
        self._losses.clear()
        self._loss_sum = self._loss_count = 0.0

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
        total, count = self._totals() if everywhere else (self._loss_sum, self._loss_count)
        return total / max(1.0, count)

    def _totals(self) -> tuple[float, float]:
        """Sum and number of the losses of all ranks."""
        if self.trainer.world_size == 1:
            return self._loss_sum, self._loss_count
        totals = torch.tensor([self._loss_sum, self._loss_count], dtype=torch.float64, device=self.device)
        total, count = self.trainer.strategy.reduce(totals, reduce_op="sum").tolist()
        return total, count

    def check_finite(self) -> None:
        """Raise TrainingError, on all ranks, if any rank has met a loss that is not finite. To be called by all."""
        mean = self.mean_loss()
        if agree(self.trainer, not math.isfinite(mean)):
            raise TrainingError(
                f"the training loss is {mean} in epoch {self.epoch}, at or before step {self.trainer.global_step}. "
                "A lower optimizer.lr, a longer schedule.warmup_epochs, trainer.gradient_clip_val or "
                "trainer.precision bf16-mixed instead of 16-mixed may help"
            )

    def forward(self, images: Tensor) -> Any:
        """The network's output for images (B, C, H, W)."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.network(images)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ganglion"] = self.description()
        self.mean_loss()
        total, count = self._totals()
        checkpoint["epoch_losses"] = {"sum": total, "count": count}
        checkpoint["measured"] = dict(self.measured)
        checkpoint["length"] = {"steps": self._run_steps(), "images": self._images()}
        checkpoint["batch"] = {"step": self.global_batch_size, "batch": self._images_per_batch()}
        checkpoint["ended"] = self.trainer.should_stop and not self.complete

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise TrainingError if the checkpoint is of another run."""
        done, epochs = (
            checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"],
            self._length()[0],
        )
        if done > epochs:
            raise TrainingError(f"the run has {done} epochs behind it, and is to end after {epochs:g}")
        self.check_continues(checkpoint["ganglion"])
        losses, ranks = checkpoint["epoch_losses"], self.trainer.world_size
        self._loss_sum, self._loss_count = losses["sum"] / ranks, losses["count"] / ranks
        self.measured = dict(checkpoint["measured"])
        # The schedule is a function of the recipe and the step, not of what an earlier recipe made of it.
        checkpoint["lr_schedulers"] = []
        self._resumed = True
        self._note_length(checkpoint["length"])
        self._trade_batches(checkpoint)

    def _run_steps(self) -> int:
        epochs, per_epoch = self._length()
        return round(epochs * per_epoch)

    def _images(self) -> int:
        return len(self.trainer.datamodule.source("train"))  # pyright: ignore

    def _images_per_batch(self) -> int:
        return self.global_batch_size // self.trainer.accumulate_grad_batches

    def _note_length(self, before: Mapping[str, int]) -> None:
        steps = self._run_steps()
        if (images := self._images()) != before["images"]:
            self._notes.append(
                f"the training data have {images} images, and had {before['images']} in this run so far"
            )
        if steps != before["steps"]:
            self._notes.append(
                f"the run has {steps} steps, and had {before['steps']} so far: its schedule goes on as that of a "
                f"run of {steps}"
            )

    def _trade_batches(self, checkpoint: dict[str, Any]) -> None:
        """Count the place in the epoch in batches of this command's size.

        Raises TrainingError if as many images to an optimizer step as before are not possible.
        """
        before, trainer = checkpoint["batch"], self.trainer
        found = {"step": self.global_batch_size, "batch": self._images_per_batch()}
        if found["step"] != before["step"]:
            accumulated = trainer.accumulate_grad_batches
            raise TrainingError(
                f"the run takes {before['step']} images to an optimizer step; data.batch_size "
                f"{found['batch'] // trainer.world_size} on {trainer.world_size} devices, with "
                f"trainer.accumulate_grad_batches {accumulated}, makes {found['step']}. Expected data.batch_size "
                f"{before['step'] / trainer.world_size / accumulated:g}"
            )
        if found["batch"] == before["batch"]:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["current"], progress["total"]):
            done = counts["ready"]
            moved = done * before["batch"] // found["batch"] - done
            counts.update({name: count + moved for name, count in counts.items()})
        if not progress["is_last_batch"] and progress["current"]["ready"] >= self._images() // found["batch"]:
            raise TrainingError(
                f"batches of {found['batch']} images leave nothing of this epoch, whose rest is smaller: go on with "
                f"batches of {before['batch']} to its end first"
            )


def shard(network: nn.Module, mesh: Any) -> None:
    """Shard parameters over the data-parallel dimension of the mesh (FSDP2), block by block.

    Blocks are gathered when they run; what is in no block is gathered with the network.
    """
    from torch.distributed.fsdp import fully_shard

    data_parallel = mesh["data_parallel"]
    for stage in getattr(network, "stages", ()):
        for block in getattr(stage, "blocks", ()):
            fully_shard(block, mesh=data_parallel)
    fully_shard(network, mesh=data_parallel)


def agree(trainer: pl.Trainer, flag: bool) -> bool:
    """Whether the flag is set on any rank: to be called by all of them."""
    return flag if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(flag, all=False)


def rank_of_environment() -> int:
    """This process's rank, also where no trainer exists (any more)."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0"))))
