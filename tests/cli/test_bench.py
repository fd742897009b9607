"""`ganglion bench`, and what it measures."""

from __future__ import annotations

import csv
import json

import pytest
import timm
import torch

from ganglion.analysis.complexity import activation_memory
from ganglion.analysis.throughput import check_logits, throughput
from ganglion_cli import main


def test_rows(tmp_path, capsys):
    file = tmp_path / "rows.csv"
    argv = [
        "bench",
        "test_vmamba",
        "test_sparx_mamba",
        "--img-size",
        "64",
        "--batch-size",
        "2",
        "--device",
        "cpu",
    ]
    assert main([*argv, "--num-bench-iter", "3", "--json", "--results-file", str(file)]) == 0
    report = json.loads(capsys.readouterr().out)
    first, second = report["rows"]
    assert "not the papers'" in report["memory"] and first["ratio"] == 1 and len(first["seconds"]) == 3
    assert second["ratio"] == second["infer_samples_per_sec"] / first["infer_samples_per_sec"]
    assert first["infer_samples_per_sec"] == pytest.approx(2 / sorted(first["seconds"])[1])
    assert [row["model"] for row in csv.DictReader(file.open())] == ["test_vmamba", "test_sparx_mamba"]


def test_dry_run_is_what_is_counted(capsys):
    assert main(["bench", "test_vmamba", "--img-size", "64", "--device", "cpu", "--dry-run", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    network = timm.create_model("test_vmamba")
    assert row["memory"] == activation_memory(network, 64, batch_size=4) / 2**20
    assert row["infer_samples_per_sec"] is None


class Hungry(torch.nn.Module):
    """Has no memory for more than `most` images."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.linear = most, torch.nn.Linear(3, 2)

    def forward(self, x):
        if x.shape[0] > self.most and x.device.type != "meta" and type(x) is torch.Tensor:
            raise RuntimeError("CUDA out of memory")
        return self.linear(x.mean((2, 3)))


def test_out_of_memory_is_a_row(monkeypatch):
    monkeypatch.setattr("ganglion.analysis.throughput.activation_memory", lambda *_, **__: 0)
    monkeypatch.setattr("ganglion.analysis.throughput.complexity", lambda *_: Cost)
    hungry, full = throughput({"hungry": Hungry(2), "full": Hungry(8)}, 8, 8, warmup=1, rounds=2)
    assert hungry.out_of_memory == [8, 4] and hungry.infer_batch_size == 2 and len(hungry.seconds) == 2
    assert full.out_of_memory == [] and full.infer_batch_size == 8


class Cost:
    params = flops = 0


def test_wrong_logits_are_not_timed():
    class Wrong(Hungry):
        def forward(self, x):
            return super().forward(x) + (x.dtype == torch.float32)

    with pytest.raises(ValueError, match="wrong: its logits differ"):
        check_logits("wrong", Wrong(2), torch.randn(1, 3, 8, 8), bound=1e-3)
