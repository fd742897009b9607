"""Two processes on the CPU (gloo) do what one does with the same global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .processes import losses_of
from .runs import arguments, differences, read_last, write_data

#: The sums over two halves of a batch are added in another order than those over the whole.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}

FSDP = (
    "{class_path: lightning.pytorch.strategies.ModelParallelStrategy, "
    "init_args: {data_parallel_size: 2, tensor_parallel_size: 1, save_distributed_checkpoint: false}}"
)


def train(
    folder: Path, data: Path, processes: int, crash_at: int = -1, strategy: str = "auto", **options: object
) -> list[float]:
    """Mean loss of every step over the processes, up to the step in which all of them die."""
    chosen = {
        "model__drop_path_rate": 0,
        "model__drop_rate": 0,
        "model__mixing": "{mixup: 0}",
        "data__batch_size": 8 // processes,
        "trainer__max_epochs": 5,
        "trainer__devices": processes,
        "trainer__strategy": strategy,
        "ema__decay": 0,
    } | options
    argv = arguments(data, folder / "run", **chosen)
    losses = losses_of(folder, argv, processes=processes, crash_at=crash_at)
    return [sum(step) / processes for step in zip(*losses, strict=True)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    # 13 validation images: the last batch is uneven, and so are the processes' shares.
    return write_data(tmp_path_factory.mktemp("data"), train=36, test=13)


@pytest.fixture(scope="module")
def single(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    losses = train(folder, data, 1)
    assert len(losses) == 20
    return losses, read_last(folder / "run"), (folder / "run" / "log.csv").read_text()


@pytest.mark.parametrize("strategy", ["ddp", FSDP], ids=["ddp", "fully_shard"])
def test_two_processes_equal_one(strategy, data, single, tmp_path):
    losses, checkpoint, log = single
    found = train(tmp_path, data, 2, strategy=strategy)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), **TOLERANCE)
    weights = read_last(tmp_path / "run")["state_dict"]
    assert weights.keys() == checkpoint["state_dict"].keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, checkpoint["state_dict"][name], rtol=1e-3, atol=1e-4)
    # epoch, step, lr exactly; losses to rounding; top-1 and top-5 are counts and agree exactly.
    for ours, theirs in zip(
        (tmp_path / "run" / "log.csv").read_text().splitlines()[1:], log.splitlines()[1:]
    ):
        a, b = (list(map(float, line.split(",")))[:7] for line in (ours, theirs))
        assert a[:3] == b[:3] and a[5:7] == b[5:7]
        assert a[3:5] == pytest.approx(b[3:5], rel=1e-4)


def test_resume_on_another_number_of_processes(data, single, tmp_path):
    """The order of the images belongs to the global batch, so a run may change its machines between two steps."""
    losses, *_ = single
    first = train(tmp_path, data, 2, crash_at=7, strategy="ddp", checkpoint__every_n_steps=1)
    second = train(tmp_path, data, 1, checkpoint__every_n_steps=1)
    torch.testing.assert_close(torch.tensor(first + second), torch.tensor(losses), **TOLERANCE)


def test_sharded_resume_equals_uninterrupted(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    losses = train(whole, data, 2, strategy=FSDP, trainer__max_epochs=2)
    first = train(parts, data, 2, crash_at=6, strategy=FSDP, trainer__max_epochs=2)
    second = train(parts, data, 2, strategy=FSDP, trainer__max_epochs=2)
    assert first + second == losses
    assert differences(read_last(parts / "run")["state_dict"], read_last(whole / "run")["state_dict"]) == []
