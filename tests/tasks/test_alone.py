"""A task without a trainer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ganglion.data import Batch
from ganglion.tasks.classification.training import Classification, MixingConfig
from ganglion.training.errors import TrainingError


def batch(classes: int = 4) -> Batch:
    torch.manual_seed(0)
    return Batch(torch.randn(4, 3, 32, 32), torch.randint(classes, (4,)), [])


def test_the_loss_of_a_batch_made_by_hand():
    task = Classification("test_vmamba", num_classes=4, label_smoothing=0.1).eval()
    made = batch()
    loss = task.loss(made)
    expected = F.cross_entropy(task.network(made.images), made.targets, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.network.parameters())


def test_mixing_needs_no_trainer_either():
    task = Classification("test_vmamba", num_classes=4, mixing=MixingConfig(mixup=0.8))
    assert task.loss(batch()).isfinite() and task.epoch == 0


def test_what_it_measures():
    task = Classification("test_vmamba", num_classes=4).eval()
    metrics = task.metrics()
    made = batch()
    metrics.update(task(made.images), made)
    assert metrics.images == 4 and set(metrics.values()) == {"top1", "top5", "loss"}
    assert task.measures == ("val/loss", "val/top1", "val/top5")


def test_what_only_data_say_is_asked_for():
    with pytest.raises(TrainingError, match=r"set model\.num_classes"):
        Classification("test_vmamba").loss(batch())
    with pytest.raises(TrainingError, match="belongs to no trainer with data"):
        Classification("test_vmamba", num_classes=4, class_weights="balanced").loss(batch())
