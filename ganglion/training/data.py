"""What the data of all tasks share: how they are split among processes, where in the epoch they begin, both loaders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from torch import Tensor

from ..config import check_range
from ..data import ImageSource, Loader, Processes, Targets, Transform, eval_loader, stack, train_loader
from .errors import TrainingError
from .trainer import batches_done, epochs_done, root_device

if TYPE_CHECKING:
    from .task import Task

PartName = Literal["train", "val"]


class TaskData(pl.LightningDataModule):
    """Images to train on and to validate with.

    A subclass says what they are (`open`), what happens to an image and its target (`transform`) and how they become a
    batch (`collate`).

    Args:
        batch_size: images per device and forward pass.
        val_batch_size: likewise, in validation. null: batch_size.
        workers: processes per device that read and augment. 0: the main process does.
        max_unreadable: fraction of unreadable images, of those in a split, above which the run stops.
        seed: see `seed_everything`.
    """

    #: What there is: a task that validates nothing has the first alone.
    parts: tuple[PartName, ...] = ("train", "val")

    def __init__(
        self,
        *,
        batch_size: int = 128,
        val_batch_size: int | None = None,
        workers: int = 4,
        max_unreadable: float = 0.01,
        seed: int = 0,
    ):
        super().__init__()
        check_range("data.batch_size", batch_size, 1)
        check_range("data.val_batch_size", val_batch_size, 1)
        check_range("data.workers", workers, 0)
        check_range("data.max_unreadable", max_unreadable, 0, 1)
        check_range("seed_everything", seed, 0)
        self.batch_size: int = batch_size
        self.val_batch_size: int = val_batch_size or batch_size
        self.workers: int = workers
        self.max_unreadable: float = max_unreadable
        self.seed: int = seed
        self._sources: dict[PartName, ImageSource] = {}

    def open(self, part: PartName) -> ImageSource:
        """The images of a part. Raises DataError where there are none."""
        raise NotImplementedError

    def transform(self, part: PartName) -> Transform:
        """From an image and its target to what a batch is made of."""
        raise NotImplementedError

    @staticmethod
    def collate(images: list[Tensor], targets: list[Any]) -> tuple[Tensor, Targets]:
        """What a batch is made of, see `ganglion.data.Collate`. Loader processes run it, without the object."""
        return stack(images, targets)

    def groups(self) -> Sequence[int] | None:
        """The group of every training image, where a batch is to hold images of one group."""
        return None

    def describe(self) -> list[tuple[str, str]]:
        """What there is to train on and to validate with, as titles and lines."""
        lines = {"train": ("training", ""), "val": ("validation", "none")}
        lines |= {part: (lines[part][0], f"{len(self.source(part))} images") for part in self.parts}
        return list(lines.values())

    def validate_options(self) -> str | None:
        """The options of `ganglion validate` that measure on the same images as the run did; None if nothing does."""
        return None

    @property
    def task(self) -> Task:
        """What is trained on these data."""
        if self.trainer is None:
            raise TrainingError(f"{type(self).__name__} belongs to no trainer: no task reads from it")
        task: Any = self.trainer.lightning_module
        return task

    @property
    def processes(self) -> Processes:
        """Which process this is, and how many read for it. Without a trainer it is the only one."""
        if self.trainer is None:
            return Processes(workers=self.workers)
        return Processes(
            rank=self.trainer.global_rank, world_size=self.trainer.world_size, workers=self.workers
        )

    @property
    def position(self) -> tuple[int, int]:
        """Epochs done, and batches done of the one that the run is in."""
        return (epochs_done(self.trainer), batches_done(self.trainer)) if self.trainer is not None else (0, 0)

    def source(self, part: PartName) -> ImageSource:
        """The images of a part, opened at the first call. Raises DataError where there are none."""
        if part not in self._sources:
            self._sources[part] = self.open(part)
        return self._sources[part]

    def setup(self, stage: str) -> None:
        for part in self.parts:
            if note := self.source(part).note:
                self.task.note(f"{part}: {note}")
        if "val" not in self.parts and self.trainer is not None:
            self.trainer.limit_val_batches = 0  # Lightning would warn of a loader without batches

    def train_dataloader(self) -> Loader:
        epoch, done = self.position
        return train_loader(
            self.source("train"),
            self.transform("train"),
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            start_batch=done,
            processes=self.processes,
            pin_memory=self._pins(),
            collate=self.collate,
            groups=self.groups(),
        )

    def val_dataloader(self) -> Loader:
        return eval_loader(
            self.source("val"),
            self.transform("val"),
            batch_size=self.val_batch_size,
            processes=self.processes,
            pin_memory=self._pins(),
            collate=self.collate,
        )

    def _pins(self) -> bool:
        return self.trainer is not None and root_device(self.trainer).type == "cuda"
