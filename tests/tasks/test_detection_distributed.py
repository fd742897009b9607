"""Detection in two processes (gloo, on a CPU): metrics as in one, resuming bit for bit after both are killed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ganglion.data import Batch
from ganglion.tasks.detection.metrics import CocoMetrics

from . import detection_data
from .detection_data import scene
from .processes import losses_of
from .runs import differences, read_last
from .test_distributed import FSDP


def measured(indices) -> CocoMetrics:
    outputs, targets = scene(3)
    made = CocoMetrics(["a", "b", "c"])
    for i in indices:
        made.update([outputs[i]], Batch(torch.empty(0), [targets[i]], []))
    return made


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # Uneven parts, and one image that both have seen.
    total = measured((0, 1, 2, 3) if rank == 0 else (4, 3)).reduce()
    found = {"values": total.values(), "classes": total.classes("mask"), "missed": total.missed()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_metrics_of_two_processes_are_those_of_one(tmp_path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    one = measured(range(5))
    expected = {"values": one.values(), "classes": one.classes("mask"), "missed": one.missed()}
    assert 5 < expected["values"]["box_ap"] < 95
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == json.loads(json.dumps(expected))


def train(folder: Path, data: Path, strategy: str = "ddp", crash_at: int = -1) -> list[list[float]]:
    """The loss of every step of each of two processes, up to the step in which both die."""
    argv = detection_data.arguments(
        data,
        folder / "run",
        trainer__devices=2,
        trainer__strategy=strategy,
        data__batch_size=1,
        ema__decay=0,
    )
    return losses_of(folder, argv, crash_at=crash_at)


def test_two_processes_resume_bit_for_bit_and_may_be_sharded(tmp_path):
    data = detection_data.write(tmp_path / "data")
    losses = train(tmp_path / "whole", data)
    assert [len(of_rank) for of_rank in losses] == [6, 6]
    first = train(tmp_path / "parts", data, crash_at=4)
    second = train(tmp_path / "parts", data)
    assert [a + b for a, b in zip(first, second, strict=True)] == losses
    whole, parts = (read_last(tmp_path / name / "run")["state_dict"] for name in ("whole", "parts"))
    assert differences(parts, whole) == []
    rows = (tmp_path / "whole" / "run" / "log.csv").read_text().splitlines()
    assert "val/box_ap" in rows[0] and len(rows) == 3
    sharded = train(tmp_path / "sharded", data, FSDP)
    torch.testing.assert_close(torch.tensor(sharded), torch.tensor(losses), rtol=1e-3, atol=1e-4)
