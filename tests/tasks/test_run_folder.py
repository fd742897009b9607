"""A run's folder: what a run did not write stays as it is, and one process at a time works in it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest

from ganglion.tasks import fit
from ganglion.training.run_checkpoints import list_checkpoints

from .runs import PLAIN, arguments, error, tree, write_data

ONE = PLAIN | {"trainer__max_epochs": 1, "schedule__warmup_epochs": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), train=16)


@pytest.fixture
def finished(data, tmp_path):
    assert fit.main(arguments(data, tmp_path / "run", **ONE)) == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name", ["model/net.py", "model/config.json", "config.yaml", "log.csv", "checkpoints/best.ckpt"]
)
def test_what_was_there_before_the_run_is_refused(name, data, tmp_path, capsys):
    theirs = tmp_path / "project" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("# mine\nmodel: {name: test_vmamba}\n")
    before = tree(tmp_path)
    said = error(arguments(data, tmp_path / "project", **ONE), capsys)
    assert (
        str(tmp_path / "project" / name.split("/net")[0].split("/config.j")[0]) in said and "--output" in said
    )
    assert tree(tmp_path) == before


def test_other_files_beside_a_run_do_not_matter(data, tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "model").mkdir()  # empty
    assert fit.main(arguments(data, tmp_path, **ONE)) == 0
    assert (tmp_path / "notes.md").read_text() == "mine"


def test_what_was_added_to_a_run_stays(data, finished, capsys):
    (finished / "model" / "card.md").write_text("mine")
    assert fit.main(arguments(data, finished, **ONE)) == 0
    assert (finished / "model" / "card.md").read_text() == "mine"
    for name in ("config.json", "model.safetensors"):
        whole = (finished / "model" / name).read_bytes()
        (finished / "model" / name).write_text("{}")
        capsys.readouterr()
        assert str(finished / "model") in error(arguments(data, finished, **ONE), capsys)
        assert (finished / "model" / name).read_text() == "{}"
        (finished / "model" / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data__batch_size": 4}, "images to an optimizer step"),
        ({"data__root": "typo"}, "typo"),
        ({"data__val_split": "nowhere"}, "nowhere"),
        ({"optimizer__lr": 1}, "optimizer.lr (0.001 there, 1.0 here)"),
        ({"checkpoint__monitor": "top1"}, "val/top1"),
        ({"trainer__callbacks": "EarlyStopping", "trainer__callbacks__monitor": "valid_loss"}, "val/loss"),
        ({"trainer__accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches is 0"),
        ({"trainer__overfit_batches": 1}, "data.train_limit"),
        ({"trainer__max_steps": 0}, "trainer.max_steps is 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_refused_command_changes_nothing(options, said, data, finished, capsys):
    before = tree(finished)
    assert said in error(arguments(data, finished, **ONE | {"trainer__max_epochs": 2} | options), capsys)
    assert tree(finished) == before


def test_a_refused_command_makes_no_folder(tmp_path, capsys):
    error(arguments(tmp_path / "typo", tmp_path / "a" / "b", **ONE), capsys)
    assert os.listdir(tmp_path) == []


def test_a_resumed_run_records_what_changed_after_its_first_step(data, finished):
    assert fit.main(["--resume", str(finished), "--trainer.max_epochs=2"]) == 0
    assert "max_epochs: 2" in (finished / "config.yaml").read_text()


def write_classes(folder, names: list[str]):
    write_data(folder, train=16)
    for split in ("train", "test"):
        arrays = dict(np.load(folder / f"colours_{split}.npz"))
        np.savez(folder / f"colours_{split}.npz", classes=np.array(names), **arrays)
    return folder


def test_classes_are_part_of_the_run(tmp_path, capsys):
    animals = write_classes(tmp_path / "animals", ["cat", "dog", "emu", "fox"])
    fruit = write_classes(tmp_path / "fruit", ["cat", "date", "elderberry", "fig"])
    assert fit.main(arguments(animals, tmp_path / "run", **ONE)) == 0
    before = tree(tmp_path / "run")
    for epochs in (1, 2):
        said = error(arguments(fruit, tmp_path / "run", **ONE | {"trainer__max_epochs": epochs}), capsys)
        assert "'dog'" in said and "'date'" in said
    assert tree(tmp_path / "run") == before
    moved = write_classes(tmp_path / "moved", ["cat", "dog", "emu", "fox"])
    assert fit.main(arguments(moved, tmp_path / "run", **ONE | {"trainer__max_epochs": 2})) == 0


def test_a_dry_run_leaves_nothing(data, finished, tmp_path, capsys):
    argv = arguments(data, tmp_path / "dry", **ONE, trainer__fast_dev_run="true")
    assert fit.main(argv) == 0
    assert "nothing of it was kept" in capsys.readouterr().out and not (tmp_path / "dry").exists()
    before = tree(finished)
    assert fit.main(arguments(data, finished, **ONE, trainer__fast_dev_run="true")) == 0
    assert tree(finished) == before


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_files_have_the_mode_of_the_umask(data, tmp_path):
    before = os.umask(0o022)
    try:
        assert fit.main(arguments(data, tmp_path, **ONE)) == 0
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*") if p.is_file()}
    assert len(modes) == 6 and set(modes.values()) == {0o644}


def test_what_killed_writers_left_is_removed(data, finished):
    code = (
        "import os, sys; from ganglion.files import replacing\n"
        "kept = [replacing(path) for path in sys.argv[1:]]\n"
        "for writer in kept: writer.__enter__()\n"
        "os._exit(9)"
    )
    targets = ("config.yaml", "log.csv", "model/model.safetensors", "checkpoints/step-00000002.ckpt")
    before = tree(finished)
    subprocess.run([sys.executable, "-c", code, *(str(finished / name) for name in targets)], check=False)
    assert len(tree(finished)) == len(before) + 4
    assert fit.main(arguments(data, finished, **ONE)) == 0
    assert tree(finished) == before


HOLD = """
import sys, time
from pathlib import Path
from ganglion.training.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_runs_in_one_folder(data, tmp_path, capsys):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    try:
        said = error(arguments(data, tmp_path, **ONE), capsys)
        assert f"process {holder.pid} on {os.uname().nodename}" in said and str(tmp_path) in said
        assert list_checkpoints(tmp_path / "checkpoints") == []
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert fit.main(arguments(data, tmp_path, **ONE)) == 0
    assert f"taking over {tmp_path} from process {holder.pid}" in capsys.readouterr().out
    assert fit.main(arguments(data, tmp_path, **ONE)) == 0
    assert "taking over" not in capsys.readouterr().out
