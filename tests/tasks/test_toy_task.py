"""A task of somebody else's, in a folder of three small files, through everything that the package's own go through."""

from __future__ import annotations

import ast
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ganglion
from ganglion.data import Batch
from ganglion.models import CheckpointError
from ganglion.tasks import FILES, TASKS, find_task
from ganglion.training.metrics import Mean
from ganglion_cli import main

from .runs import read_last

TOY = Path(__file__).parent / "toy" / "mean_colour"


@pytest.fixture
def task(tmp_path, monkeypatch):
    """The folder, where no package knows of it; and imports as they were before."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    shutil.copytree(TOY, tmp_path / "scratch" / "mean_colour")
    yield tmp_path / "scratch" / "mean_colour"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mean_colour"]:
        del sys.modules[name]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        folder = tmp_path / "data" / split / "any"
        folder.mkdir(parents=True)
        for i in range(count):
            colour = rng.integers(0, 256, 3)
            Image.fromarray(np.full((20, 24, 3), colour, np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


def arguments(task, data, output, *more: str) -> list[str]:
    return [
        "fit", "--task", str(task), "--data.root", str(data), "--output", str(output), "--trainer.max_epochs", "1",
        "--trainer.accelerator", "cpu", "--schedule.warmup_epochs", "0", "--optimizer.lr", "0.01", *more,
    ]  # fmt: skip


def test_trained_validated_used(task, data, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(arguments(task, data, run)) == 0
    out = capsys.readouterr().out
    assert f"--task {task}" in out and "val/error" in out
    saved = read_last(run)
    assert saved["global_step"] == 2 and saved["ganglion"]["task"] == "mean_colour"
    assert "val/error" in (run / "log.csv").read_text().splitlines()[0]
    assert (run / "checkpoints" / "best.ckpt").exists()  # MONITOR

    model, image = str(run / "model"), data / "val" / "any" / "0.png"
    assert json.loads((run / "model" / "config.json").read_text())["task"] == "mean_colour"
    assert main(["validate", "--checkpoint", model, "--task", str(task), "--data", str(data), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["images"] == 3
    assert result["error"] == pytest.approx(saved["measured"]["val/error"], rel=1e-4)
    assert main(["validate", "--checkpoint", model, "--task", str(task), "--data", str(data)]) == 0
    assert "mean error" in capsys.readouterr().out

    save = ["--save", str(tmp_path / "drawn")]
    assert main(["predict", str(image), "--checkpoint", model, "--task", str(task), *save]) == 0
    assert "red green blue" in capsys.readouterr().out
    assert Image.open(tmp_path / "drawn" / "0.predicted.jpg").size == (44, 40)
    loaded = ganglion.load_model(model, task=task)
    (entry,) = ganglion.predict(loaded, image)
    again = ganglion.load_model(run / "checkpoints" / "best.ckpt", task=task)
    assert ganglion.predict(again, [image]) == [entry] and len(entry["colour"]) == 3


def test_resumes(task, data, tmp_path):
    assert main(arguments(task, data, tmp_path / "run")) == 0
    more = ["--trainer.max_epochs", "2", "--task", str(task)]
    assert main(["fit", "--resume", str(tmp_path / "run"), *more]) == 0
    assert read_last(tmp_path / "run")["global_step"] == 4


def test_no_file_says_whose_code_runs(task, data, tmp_path, capsys):
    """The command line does: neither a recipe, nor a checkpoint, nor the record of a run."""
    run = tmp_path / "run"
    assert main(arguments(task, data, run)) == 0
    for name in [name for name in sys.modules if name.partition(".")[0] == "mean_colour"]:
        del sys.modules[name]
    capsys.readouterr()
    for source in (run / "model", run / "checkpoints" / "best.ckpt"):
        with pytest.raises(CheckpointError, match=r"of the task 'mean_colour'.*expected --task FOLDER"):
            ganglion.load_model(source)
    assert main(["fit", "--resume", str(run)]) != 0
    assert "mean_colour" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").write_text(f"task: {task}\ndata: {{root: {data}}}\n")
    assert main(["fit", "--config", str(tmp_path / "recipe.yaml")]) == 2
    assert "there is no such task" in capsys.readouterr().err
    assert not any(name.partition(".")[0] == "mean_colour" for name in sys.modules)


def test_help_lists_its_options(task, capsys):
    assert main(["fit", "--help", "--task", str(task)]) == 0
    out = capsys.readouterr().out
    assert "--data.root TEXT" in out and "folder with a folder for each split" in out
    assert "--model.channels_last" in out and "--model.name" not in out
    assert "[val/error]" in out and "[min]" in out
    assert main(["fit", "--task", str(task), "--data.roots", "x"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_a_task_whose_files_do_not_say_its_fields(task, capsys):
    """They are read, not run: two names in one line are not understood, and that is said."""
    training = task / "training.py"
    changed = re.sub(r"^TASK = (\w+)$", r"TASK, OTHER = \1, 1", training.read_text(), flags=re.M)
    assert changed != training.read_text()
    training.write_text(changed)
    for more in (["--help"], ["--data.root", "x"]):
        assert main(["fit", "--task", str(task), *more]) == 2
        assert "training.py has no line `TASK = ...` of one class" in capsys.readouterr().err


def test_a_task_is_forty_lines():
    """Beside docstrings, imports and empty lines."""
    count = 0
    for file in FILES:
        tree = ast.parse((TOY / file).read_text())
        told = [
            node
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        ]
        left_out = {i for node in told for i in range(node.lineno, (node.end_lineno or 0) + 1)}
        lines = (TOY / file).read_text().splitlines()
        count += sum(bool(line.strip()) and i not in left_out for i, line in enumerate(lines, start=1))
    assert count <= 40


def test_mean():
    """Against NumPy: an image without a target does not count, an output that is not finite does."""
    mean = Mean("error", lambda output, targets: (output - targets).abs().mean(1))
    assert math.isnan(mean.values()["error"])
    targets = torch.tensor([[0.0, 1.0], [math.nan, math.nan], [2.0, 5.0]])
    mean.update(torch.ones(3, 2), Batch(torch.zeros(3, 1), targets, []))
    mean.update(torch.zeros(1, 2), Batch(torch.zeros(1, 1), torch.tensor([[3.0, 3.0]]), []))
    assert (mean.images, mean.not_finite) == (3, 0)
    assert mean.values()["error"] == pytest.approx(np.mean([0.5, 2.5, 3.0]))
    mean.update(torch.full((1, 2), math.inf), Batch(torch.zeros(1, 1), torch.zeros(1, 2), []))
    assert (mean.reduce().images, mean.reduce().not_finite) == (4, 1)


def test_what_is_no_task(task, tmp_path):
    with pytest.raises(ValueError, match=r"unknown task 'clasification'. Did you mean 'classification'\?"):
        find_task("clasification")
    (task / "metrics.py").unlink()
    with pytest.raises(
        ValueError, match=r"has no metrics.py: expected training.py, metrics.py, prediction.py"
    ):
        find_task(task)
    shutil.copytree(TOY, tmp_path / "torch")
    with pytest.raises(ValueError, match="name of another package"):
        find_task(tmp_path / "torch")
    assert Path(sys.modules["torch"].__file__ or "").parent != tmp_path / "torch"


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_the_three_files(name):
    folder = Path(ganglion.__file__).parent / "tasks" / name
    assert all((folder / file).is_file() for file in FILES)
    task = find_task(name)
    assert {"TASK", "DATA"} <= vars(task.training).keys()
    assert {"MONITOR", "labelled"} <= vars(task.metrics).keys()
    assert {"build", "predictions", "draw", "HEADER", "lines"} <= vars(task.prediction).keys()
