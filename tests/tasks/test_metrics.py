"""Sums of correct answers and losses, against NumPy, in one process and in two."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganglion.data import Batch
from ganglion.tasks.classification.metrics import Counts


def labels(targets: torch.Tensor) -> Batch:
    return Batch(torch.empty(len(targets), 3, 1, 1), targets, [])


def by_hand(logits: np.ndarray, targets: np.ndarray) -> tuple[int, int, int, float]:
    """Images, correct at 1 and 5, and the loss, one image at a time, in float64."""
    images = correct1 = correct5 = 0
    loss = 0.0
    for row, target in zip(logits.astype(np.float64), targets, strict=True):
        if target == -1:
            continue
        place = int((row > row[target]).sum())
        images, correct1, correct5 = images + 1, correct1 + (place == 0), correct5 + (place < 5)
        loss += math.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
    return images, correct1, correct5, loss


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(2, 12),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_batches_of_any_size(seed, classes, sizes, dtype):
    rng = np.random.default_rng(seed)
    counts = Counts()
    expected = np.zeros(4)
    for size in sizes:
        # Different whole numbers in each row: exact in every dtype, and no ties.
        logits = np.stack([rng.permutation(classes) for _ in range(size)]) - classes / 2
        targets = rng.integers(-1, classes, size)
        counts.update(torch.tensor(logits, dtype=dtype), labels(torch.tensor(targets)))
        expected += by_hand(logits, targets)
    assert (counts.images, counts.correct1, counts.correct5) == tuple(expected[:3])
    assert counts.loss_sum == pytest.approx(expected[3], rel=1e-6, abs=1e-6)
    if counts.images:
        assert counts.top1 == 100 * expected[1] / expected[0]
        assert counts.top5 == 100 * expected[2] / expected[0]
        assert counts.loss == pytest.approx(expected[3] / expected[0], rel=1e-6, abs=1e-6)
        assert classes > 5 or counts.top5 == 100
    else:
        assert all(math.isnan(value) for value in (counts.top1, counts.top5, counts.loss))


def test_small_losses_are_not_lost_beside_a_large_sum():
    """2 ** 25 is where float32 begins to skip whole numbers."""
    counts = Counts()
    counts.update(torch.tensor([[0.0, 2.0**25]]), labels(torch.tensor([0])))
    for _ in range(3):
        counts.update(torch.zeros(1, 2), labels(torch.tensor([1])))
    assert counts.loss_sum == pytest.approx(2**25 + 3 * math.log(2), abs=1e-5)


def test_the_loss_of_half_precision_logits_is_that_of_float32():
    logits = torch.tensor([[9.0, 1.0, -4.0]] * 3, dtype=torch.bfloat16)
    targets = torch.tensor([0, 1, -1])
    counts = Counts()
    counts.update(logits, labels(targets))
    assert counts.loss_sum == pytest.approx(by_hand(logits.float().numpy(), targets.numpy())[3], rel=1e-6)


def test_targets_out_of_range_are_not_passed_over():
    with pytest.raises(IndexError):
        Counts().update(torch.zeros(1, 3), labels(torch.tensor([3])))


WORKER = """
import sys
import torch, torch.distributed as dist
from ganglion.data import Batch
from ganglion.tasks.classification.metrics import Counts
labels = lambda targets: Batch(torch.empty(len(targets), 3, 1, 1), targets, [])
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
counts = Counts()
with torch.inference_mode():
    for size in (5, 2)[:2 * (1 - rank)]:  # the second process has no images
        counts.update(torch.eye(7)[:size] + 0.5, labels(torch.arange(size) * (torch.arange(size) < 4)))
total = counts.reduce()
print(counts.images, total.images, total.correct1, total.correct5, f"{total.loss_sum:.12f}")
dist.destroy_process_group()
"""


def test_two_processes_one_of_them_without_images(tmp_path):
    argv = [sys.executable, "-c", WORKER]
    running = [
        subprocess.Popen([*argv, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    first, second = (process.communicate(timeout=120)[0].split() for process in running)
    counts = Counts()
    for size in (5, 2):
        counts.update(torch.eye(7)[:size] + 0.5, labels(torch.arange(size) * (torch.arange(size) < 4)))
    assert first == ["7", "7", "6", "7", f"{counts.loss_sum:.12f}"]
    assert second == ["0", *first[1:]]


def test_reduce_leaves_the_sums_as_they_are():
    counts = Counts()
    counts.update(torch.eye(3), labels(torch.tensor([0, 1, 1])))
    assert (counts.reduce().correct1, counts.reduce().correct1, counts.correct1) == (2, 2, 2)
