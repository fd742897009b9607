"""The runner of experiments/cifar10, and what is written about its results."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import timm

import ganglion  # noqa: F401

FOLDER = Path(__file__).parents[1] / "experiments" / "cifar10"


@pytest.fixture
def runner(monkeypatch, tmp_path):
    """run.py as a module that keeps its results elsewhere."""
    spec = importlib.util.spec_from_file_location("cifar10_run", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.csv")
    return module


def parameters(row, **args) -> int:
    network = timm.create_model(row.model, num_classes=10, device="meta", **(args | row.args))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("setting", ["small", "gpu"])
def test_networks_that_are_compared_have_equal_sizes(runner, setting):
    sizes = {row.name: parameters(row, **runner.SETTINGS[setting].args) for row in runner.TABLES["main"]}
    for one, other in (
        ("sparx_mamba_nano", "sparx_mamba_nano_plain"),
        ("sparx_mamba_nano", "vmamba_nano"),
        ("sparx_mamba_nano", "convnext (timm)"),
        ("sparx_swin_nano", "sparx_swin_nano_plain"),
    ):
        assert sizes[one] == pytest.approx(sizes[other], rel=0.005)


def test_scan_rows_differ_in_their_routes_only(runner):
    rows = runner.TABLES["scan"]
    assert {row.args["scan"] for row in rows} == {"unidi", "bidi", "cascade2d", "cross2d"}
    assert max(map(parameters, rows)) == pytest.approx(min(map(parameters, rows)), rel=0.005)


def test_finished_runs_are_skipped_and_a_failure_stops_no_other(runner, monkeypatch):
    rows = [runner.Row(name=name, model="vmamba_nano") for name in ("a", "b", "c")]
    runs = [runner.Run(setting="small", table="main", row=row, seed=0) for row in rows]
    args = argparse.Namespace(jobs=2, minutes=float("inf"))
    done = []

    def fit(run, args):
        done.append(run.row.name)
        if run.row.name == "b" and done.count("b") == 1:
            return None
        return dict.fromkeys(runner.COLUMNS, 1) | dict(
            zip(("setting", "table", "row", "seed"), run.key, strict=True)
        )

    monkeypatch.setattr(runner, "fit", fit)
    assert not runner.run_all(runs, args)
    assert sorted(done) == ["a", "b", "c"]
    assert runner.run_all(runs, args)
    assert sorted(done) == ["a", "b", "b", "c"]
    with open(runner.RESULTS, newline="") as file:
        assert sorted(row["row"] for row in csv.DictReader(file)) == ["a", "b", "c"]


def test_the_page_prints_what_the_results_say(runner, monkeypatch, capsys):
    monkeypatch.setattr(runner, "RESULTS", FOLDER / "results.csv")
    runner.print_tables()
    page = (FOLDER / "README.md").read_text()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) > 6
    for line in lines:
        assert line in page


@pytest.fixture
def dense(monkeypatch, tmp_path):
    """experiments/dense/run.py as a module that keeps its results elsewhere."""
    folder = FOLDER.parent / "dense"
    spec = importlib.util.spec_from_file_location("dense_run", folder / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


@pytest.mark.parametrize(("table", "within"), [("twenty", 0.01), ("semantic_fpn", 0.01), ("upernet", 0.05)])
def test_dense_networks_that_are_compared_have_equal_sizes(table, within, dense):
    counts = [dense.describe((table, row, 0), "cpu")["params"] for row in dense.ROWS]
    assert max(counts) == pytest.approx(min(counts), rel=within)


def test_dense_runs_are_skipped_once_done(dense, monkeypatch):
    parser = {
        "tables": ["twenty", "scratch", "upernet"],
        "seeds": 2,
        "rows": [r.name for r in dense.ROWS],
        "jobs": 1,
    }
    args, done = argparse.Namespace(**parser, epochs=None), []
    runs = dense.runs_of(args)
    assert len(runs) == 4 + 2 * 4 + 2 * 4

    def fit(run, args):
        done.append(run)
        table, row, seed = run
        return dict.fromkeys(dense.TABLES[table].columns, 1) | {"table": table, "row": row.name, "seed": seed}

    monkeypatch.setattr(dense, "fit", fit)
    assert dense.run_all(runs, args) and dense.run_all(runs, args)
    assert done == runs


def test_the_page_on_dense_tasks_prints_what_the_results_say(dense, monkeypatch, capsys):
    folder = FOLDER.parent / "dense"
    monkeypatch.setattr(dense, "RESULTS", folder)
    dense.print_tables()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) >= 3
    assert all(line in (folder / "README.md").read_text() for line in lines)
