"""Numbers that make no sense are refused where the field is defined, with the option's name."""

from __future__ import annotations

import pytest

from ganglion.tasks.classification.training import Classification, MixingConfig
from ganglion.training.averaging import EMA
from ganglion.training.optimization import OptimizerConfig, ScheduleConfig
from ganglion.training.progress import Progress
from ganglion.training.saving import Checkpoints

MAKERS = {
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "ema": EMA,
    "checkpoint": Checkpoints,
    "progress": Progress,
    "model.mixing": MixingConfig,
    "model": lambda **field: Classification("test_vmamba", **field),
}

NAN = float("nan")

WRONG = [
    ("optimizer.lr", (0, -1, NAN, float("inf"))),
    ("optimizer.lr_batch_size", (0,)),
    ("optimizer.weight_decay", (-0.1, NAN)),
    ("optimizer.layer_decay", (0, 1.5)),
    ("optimizer.betas", ((0.9, 1.0), (-0.1, 0.9))),
    ("optimizer.eps", (0, -1e-8)),
    ("optimizer.momentum", (-0.1, 1.0)),
    ("schedule.warmup_epochs", (-1, NAN)),
    ("schedule.warmup_lr", (-1e-6,)),
    ("schedule.min_lr", (-1e-6,)),
    ("schedule.cooldown_epochs", (-1,)),
    ("schedule.decay_epochs", (0,)),
    ("schedule.decay_milestones", ((3, -1),)),
    ("schedule.decay_rate", (0, NAN)),
    ("ema.decay", (-0.1, 1.0, NAN)),
    ("checkpoint.keep", (0,)),
    ("checkpoint.every_n_epochs", (0,)),
    ("checkpoint.every_n_steps", (0, -5)),
    ("checkpoint.every_n_minutes", (0, NAN)),
    ("progress.every_n_seconds", (0,)),
    ("model.mixing.mixup", (-0.1, NAN)),
    ("model.mixing.cutmix", (-1,)),
    ("model.mixing.prob", (-0.1, 1.1)),
    ("model.mixing.switch_prob", (2,)),
    ("model.mixing.off_epoch", (-1,)),
    ("model.num_classes", (0, -3)),
    ("model.in_chans", (0,)),
    ("model.drop_rate", (-0.1, 1.0)),
    ("model.drop_path_rate", (1.0, NAN)),
    ("model.label_smoothing", (-0.1, 1.1)),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG for value in values])
def test_out_of_range(name, value):
    group, _, field = name.rpartition(".")
    with pytest.raises(ValueError, match=rf"^{name} is .*: expected"):
        MAKERS[group](**{field: value})


def test_the_ends_of_the_ranges_are_taken():
    OptimizerConfig(weight_decay=0, layer_decay=1, betas=(0, 0), momentum=0, lr_batch_size=1)
    ScheduleConfig(warmup_epochs=0, warmup_lr=0, min_lr=0, decay_milestones=())
    EMA(decay=0)
    Checkpoints(keep=1, every_n_epochs=1, every_n_steps=None, every_n_minutes=None)
    MixingConfig(mixup=0, cutmix=0, prob=0, switch_prob=1, off_epoch=0)
    Classification("test_vmamba", drop_rate=0, drop_path_rate=0, label_smoothing=1, num_classes=1)
