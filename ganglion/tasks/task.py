"""What all tasks share: when the network is made, how it is optimised, where randomness comes from.

A task is a subclass that says how its network is built, and what a training and a validation step are.
"""

from __future__ import annotations

import math
import os
import random
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
        self._lr_scale, self._updates_per_epoch = 1.0, 1
        self._losses: list[Tensor] = []
        self._loss_sum = self._loss_count = 0.0

    def build(self) -> nn.Module:
        """The network, before it is moved to a device."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """The training loss of a batch, a scalar."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of its network, in plain types: enough to build it again without this task."""
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
        epochs, per_epoch = self._length()
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
        """Epochs of the run, and optimizer steps of an epoch.

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
        epochs = math.inf if trainer.max_epochs == -1 else float(trainer.max_epochs or math.inf)
        if trainer.max_steps != -1:
            epochs = min(epochs, trainer.max_steps / per_epoch)
        if epochs == math.inf:
            raise TrainingError("a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        return epochs, per_epoch

    @property
    def global_batch_size(self) -> int:
        """Images per optimizer step, over all devices."""
        trainer = self.trainer
        return trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches  # pyright: ignore

    @property
    def epoch(self) -> int:
        """Epochs completed, as the samplers count them (`current_epoch` lags behind in a run resumed by steps)."""
        return self.trainer.fit_loop.epoch_progress.current.processed  # pyright: ignore

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
        loss = self.loss(batch)
        self._losses.append(loss.detach())
        return loss

    def on_train_epoch_start(self) -> None:
        self._losses.clear()
        self._loss_sum = self._loss_count = 0.0

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        losses, ranks = checkpoint["epoch_losses"], self.trainer.world_size
        self._loss_sum, self._loss_count = losses["sum"] / ranks, losses["count"] / ranks


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
