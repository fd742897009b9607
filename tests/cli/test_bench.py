"""`ganglion bench`, and what it measures."""

from __future__ import annotations

import csv
import json

import pytest
import timm
import torch

from ganglion.analysis.complexity import activation_memory
from ganglion.analysis.published_speed import PRESETS, Preset, SpeedRow
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
    assert "not the papers'" in report["memory"] and first["infer_ratio"] == 1 and len(first["seconds"]) == 3
    assert second["infer_ratio"] == second["infer_samples_per_sec"] / first["infer_samples_per_sec"]
    assert first["infer_samples_per_sec"] == pytest.approx(2 / sorted(first["seconds"])[1])
    assert [row["model"] for row in csv.DictReader(file.open())] == ["test_vmamba", "test_sparx_mamba"]


def test_a_training_step_and_half_precision(capsys):
    argv = ["bench", "test_vmamba", "--img-size", "32", "64", "--batch-size", "2", "--device", "cpu", "--amp"]
    assert main([*argv, "--bench", "both", "--num-bench-iter", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dtype"] == "bfloat16 autocast" and [r["infer_img_size"] for r in report["rows"]] == [
        32,
        64,
    ]
    for row in report["rows"]:
        assert row["train_samples_per_sec"] == pytest.approx(2 / row["train_seconds"][0])
        assert row["train_memory"] > row["memory"] and row["train_ratio"] == 1


@pytest.fixture
def tiny_table(monkeypatch):
    """A table of tiny networks, one of which nobody has."""
    rows = [
        SpeedRow(row=name, model=model, img_size=size, infer=infer, memory=7.0, top1=top1)
        for size in (32, 64)
        for name, model, infer, top1 in (
            ("Other", None, 100.0, 70.0),
            ("VMamba", "test_vmamba", 200.0, 71.0),
            ("SparX", "test_sparx_mamba", 150.0, 72.0),
        )
    ]
    table = Preset(table="Tiny", gpu="A0", reference="VMamba", rows=tuple(rows))
    monkeypatch.setattr("ganglion.analysis.published_speed.PRESETS", {"tiny": table})


def test_a_table_beside_the_papers(tiny_table, tmp_path, capsys):
    argv = ["bench", "--preset", "tiny", "--device", "cpu", "--batch-size", "1", "--num-bench-iter", "2"]
    files = [tmp_path / f"table.{suffix}" for suffix in ("json", "md", "csv")]
    for file in files:
        picture = ["--plot", str(tmp_path / f"{file.suffix[1:]}.png")]
        assert main([*argv, "--img-size", "32", "--results-file", str(file), *picture]) == 0
    out = capsys.readouterr().out
    assert "Other" in out and "not available" in out and "says little of large batches" in out
    rows = json.loads(files[0].read_text())["rows"]
    assert [row["paper_infer_ratio"] for row in rows] == [0.5, 1, 0.75] and rows[1]["infer_ratio"] == 1
    assert rows[0]["available"] is False and rows[2]["paper_memory"] == 7
    assert files[1].read_text().count("\n| ") == 5 and "paper's GPU: A0" in files[1].read_text()
    assert len(list(csv.DictReader(files[2].open()))) == 3
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("json", "md", "csv"))


def test_sizes_that_a_table_does_not_have(tiny_table, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--preset", "tiny", "--img-size", "48", "--device", "cpu"])
    assert "Tiny has the sizes 32, 64, not 48" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--preset", "tin", "--device", "cpu"])
    assert "Did you mean 'tiny'" in capsys.readouterr().err


def test_every_network_of_the_presets_exists():
    for name, preset in PRESETS.items():
        assert all(row.model is None or timm.is_model(row.model) for row in preset.rows), name
        for size in {row.img_size for row in preset.rows}:
            assert [r.row for r in preset.rows if r.img_size == size].count(preset.reference) == 1, name


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
    assert hungry.out_of_memory == ["8", "4"] and hungry.infer_batch_size == 2 and len(hungry.seconds) == 2
    assert full.out_of_memory == [] and full.infer_batch_size == 8


class Cost:
    params = flops = 0


def test_a_network_for_which_there_is_no_memory_at_all(monkeypatch):
    monkeypatch.setattr("ganglion.analysis.throughput.activation_memory", lambda *_, **__: 0)
    monkeypatch.setattr("ganglion.analysis.throughput.complexity", lambda *_: Cost)
    none, full = throughput({"none": Hungry(0), "full": Hungry(8)}, 8, 8, warmup=1, rounds=2, train=True)
    assert none.out_of_memory == ["1 image"] and none.infer_batch_size is None is none.train_samples_per_sec
    assert full.infer_samples_per_sec and full.train_samples_per_sec


def test_wrong_logits_are_not_timed():
    class Wrong(Hungry):
        def forward(self, x):
            return super().forward(x) + (x.dtype == torch.float32)

    with pytest.raises(ValueError, match="wrong: its logits differ"):
        check_logits("wrong", Wrong(2), torch.randn(1, 3, 8, 8), bound=1e-3)
