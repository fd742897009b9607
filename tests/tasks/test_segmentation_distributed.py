"""Segmentation in two processes (gloo, on a CPU): metrics as in one, resuming bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ganglion.data import Batch
from ganglion.tasks.segmentation.metrics import SegmentationMetrics

from . import segmentation_data
from .processes import losses_of
from .runs import differences, read_last


def measured(indices) -> SegmentationMetrics:
    made = SegmentationMetrics(["a", "b", "c"])
    for i in indices:
        generator = torch.Generator().manual_seed(i)
        labels = torch.randint(0, 3, (1, 9, 11), generator=generator)
        labels[:, 0] = 255
        made.update(torch.randn(1, 3, 9, 11, generator=generator), Batch(torch.empty(0), labels, []))
    return made


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    total = measured((0, 1, 2, 3) if rank == 0 else (4,)).reduce()
    found = {"confusion": total.confusion.tolist(), "images": total.images, "values": total.values()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_metrics_of_two_processes_are_those_of_one(tmp_path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    one = measured(range(5))
    expected = {"confusion": one.confusion.tolist(), "images": 5, "values": one.values()}
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


def train(folder: Path, data: Path, crash_at: int = -1) -> list[list[float]]:
    """The loss of every step of each of two processes, up to the step in which both die."""
    argv = segmentation_data.arguments(
        data, folder / "run", "--data.batch_size", "1", "--trainer.devices", "2", "--ema.decay", "0"
    )
    argv[:2] = ["--task=segmentation"]
    return losses_of(folder, argv, crash_at=crash_at)


def test_two_processes_resume_bit_for_bit(tmp_path):
    data = segmentation_data.whole(tmp_path / "data")
    losses = train(tmp_path / "whole", data)
    assert [len(of_rank) for of_rank in losses] == [6, 6]
    first = train(tmp_path / "parts", data, crash_at=4)
    second = train(tmp_path / "parts", data)
    assert [a + b for a, b in zip(first, second, strict=True)] == losses
    whole, parts = (read_last(tmp_path / name / "run")["state_dict"] for name in ("whole", "parts"))
    assert differences(parts, whole) == []
    assert "val/miou" in (tmp_path / "whole" / "run" / "log.csv").read_text()
