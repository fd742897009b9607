"""The runner of experiments/analyses, and what is written about its results."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from ganglion.analysis import (
    contribution_squares,
    effective_receptive_field,
    layer_similarity,
    mean_off_diagonal,
)

FOLDER = Path(__file__).parents[1] / "experiments" / "analyses"


@pytest.fixture
def runner(monkeypatch):
    """run.py as a module that measures on few images."""
    spec = importlib.util.spec_from_file_location("analyses_run", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    for name, value in {"ERF_IMAGES": 2, "CKA_IMAGES": 8, "CKA_BATCH": 4}.items():
        monkeypatch.setattr(module, name, value)
    return module


def make(row, **options):
    return timm.create_model(row.model, num_classes=10, patch_size=2, **row.args, **options)


def test_networks_that_are_compared(runner):
    made = {row.name: make(row, device="meta") for row in runner.ROWS}
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in made.items()}
    for name in ("VMamba", "plain"):
        assert sizes[name] == pytest.approx(sizes["SparX"], rel=0.005)
    reads = {name: sum(len(r) for s in n.stages for r in s.plan.reads) for name, n in made.items()}
    assert reads["VMamba"] == reads["plain"] == 0 < reads["SparX"] < reads["DGC"] < reads["DSN"]


def test_what_is_measured(runner, tmp_path, capsys):
    row = runner.ROWS[0]
    torch.manual_seed(1)
    network = make(row).eval()
    config = {"input_size": (3, 32, 32), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    save_for_hf(network, tmp_path / "model", {}, safe_serialization=True, data_config=config)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10_test.npz", images=pixels)
    runner.measure(argparse.Namespace(device="cpu", data=tmp_path), tmp_path)
    numbers = json.loads((tmp_path / "measured.json").read_text())
    values = (pixels.astype(np.float32) / 255 - np.float32(config["mean"])) / np.float32(config["std"])
    images = torch.from_numpy(values).permute(0, 3, 1, 2)
    field = effective_receptive_field(network, images[:2], 1)
    assert numbers["trained_erf2_50"] == contribution_squares(field, [0.5])[0].side
    similarity = layer_similarity(network, images.split(4), "mixer")
    assert numbers["trained_cka_mixer"] == pytest.approx(mean_off_diagonal(similarity), abs=1e-4)
    assert numbers["untrained_cka_mixer"] != numbers["trained_cka_mixer"]

    found = {"network": row.name, "seed": 0, "epochs": 1, "train_images": 5, "top1": 10.0, **numbers}
    for seed in (0, 1):
        runner.keep(tmp_path, found | {"seed": seed}, tmp_path / "fields.npz")
        with np.load(tmp_path / "fields.npz") as kept:
            assert f"{row.name}.seed{seed}.trained.stage4" in kept
    with open(tmp_path / "results.csv", newline="") as file:
        assert [line["seed"] for line in csv.DictReader(file)] == ["0", "1"]
    runner.print_tables(tmp_path)
    assert f"| {row.name} | 1.548 | 2 | 10.00 +- 0.00 |" in capsys.readouterr().out
    runner.draw(tmp_path)
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        "erf.svg",
        "cka_trained.svg",
        "cka_untrained.svg",
    }


def test_the_page_prints_what_the_results_say(runner, capsys):
    runner.print_tables(FOLDER / "reduced")
    page = (FOLDER / "README.md").read_text()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) > 6
    for line in lines:
        assert line in page
