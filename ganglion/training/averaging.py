"""Exponential moving average of the weights."""

from __future__ import annotations

import warnings

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..config import check_range


class EMA(WeightAveraging):
    """Averages parameters and buffers after every optimizer step; validation and export use the averages.

    Args:
        decay: weight of the past in one step, e.g. 0.9999. 0: no averaging.
        warmup: begin with short averages, decay = min(decay, (1 + n) / (10 + n)) at step n, so that a short run does
            not end with its beginning.
    """

    def __init__(self, decay: float = 0.0, warmup: bool = False):
        check_range("ema.decay", decay, 0, below=1)
        self.decay: float = decay
        self.warmup: bool = warmup
        super().__init__(multi_avg_fn=self._average)

    def _average(self, averaged: list[Tensor], current: list[Tensor], n: Tensor | int) -> None:
        decay = min(self.decay, (1 + int(n)) / (10 + int(n))) if self.warmup else self.decay
        get_ema_multi_avg_fn(decay)(averaged, current, n)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with warnings.catch_warnings():
            # The task builds its network once; averaging works on what is not sharded (the task checks that).
            warnings.filterwarnings("ignore", message=".*overrides the configure_model")
            super().setup(trainer, pl_module, stage)
