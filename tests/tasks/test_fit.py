"""`ganglion fit` as a user meets it: what it writes, what it refuses, and how it says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import timm
import torch
import yaml
from PIL import Image

from ganglion.models import CheckpointError
from ganglion.tasks import fit
from ganglion.tasks.classification import training as classification
from ganglion.tasks.loaded_model import load_model
from ganglion.training.progress import LOG, read_rows
from ganglion.training.run_checkpoints import AtomicCheckpointIO, list_checkpoints, newest_good, verify

from .runs import CLASSES, ROOT, arguments, read_last, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert fit.main(arguments(data, folder, checkpoint__keep=2)) == 0
    return folder


def error(argv, capsys) -> str:
    """What a run that must fail says."""
    assert fit.main(argv) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("ganglion fit: error: ") and "Traceback" not in captured
    return captured


def test_run_folder(trained):
    assert {p.name for p in trained.iterdir()} == {"config.yaml", "log.csv", "checkpoints", "model"}
    assert [p.name for p in list_checkpoints(trained / "checkpoints")] == [
        "step-00000020.ckpt",
        "step-00000018.ckpt",
    ]
    assert {p.name for p in (trained / "model").iterdir()} == {"config.json", "model.safetensors"}
    rows = read_rows(trained / LOG)
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert float(rows[-1]["val/top1"]) > 50  # the colours are easily told apart


def test_export_is_the_average_and_loads_everywhere(trained):
    averaged = read_last(trained)["state_dict"]
    exported = timm.create_model(f"local-dir:{trained / 'model'}", pretrained=True).eval()
    assert exported.num_classes == CLASSES
    for name, value in exported.state_dict().items():
        assert torch.equal(value, averaged[f"network.{name}"]), name
    images = torch.randn(2, 3, 32, 32)
    newest = list_checkpoints(trained / "checkpoints")[0]
    for source in (trained / "model", trained / "model" / "model.safetensors", newest):
        loaded = load_model(str(source))
        assert torch.equal(loaded.network(images), exported(images))
        assert loaded.data_config["input_size"] == (3, 32, 32)


def test_config_makes_the_same_run(trained, data, tmp_path):
    assert fit.main(["--config", str(trained / "config.yaml"), "--output", str(tmp_path)]) == 0
    for name, value in read_last(tmp_path)["state_dict"].items():
        assert torch.equal(value, read_last(trained)["state_dict"][name])


def test_finished_run_is_not_done_again(trained, data, capsys):
    before = (trained / "log.csv").read_text()
    assert fit.main(arguments(data, trained, checkpoint__keep=2)) == 0
    assert "epoch" not in capsys.readouterr().out
    assert (trained / "log.csv").read_text() == before


def test_best_checkpoint_has_the_best_metric(trained):
    rows = read_rows(trained / LOG)
    best = max(rows, key=lambda row: float(row["val/top1"]))
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == int(best["step"])


def test_print_config(capsys, data, tmp_path):
    with pytest.raises(SystemExit) as exit:
        fit.main([*arguments(data, tmp_path), "--print_config"])
    assert exit.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["name"] == "test_vmamba" and config["optimizer"]["lr"] == 1e-3


def test_plain_lines_where_there_is_no_terminal(data, tmp_path, capsys):
    assert fit.main(arguments(data, tmp_path, trainer__max_epochs=2)) == 0
    out = capsys.readouterr().out
    assert "\r" not in out and "\x1b" not in out
    for said in ("epoch", " 1/2 ", "loss ", "lr ", "images/s", "GiB", "left", "val/top1"):
        assert said in out


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("model.name", "vmamba_tinny", "vmamba_tiny"),
        ("optimizer.name", "adamx", "adam"),
        ("model.num_classes", 3, "3"),
        ("model.class_weights", "[1.0, 2.0]", "expected one for each of the 4 classes"),
        ("data.batch_size", 7, "expected an even number"),
        ("data.batch_size", 60, "no whole batch"),
        ("data.mean", "[0.1, 0.2]", "expected 1 or 3"),
        ("data.val_split", "nowhere", "nowhere"),
        ("data.root", "images.tar", "one split"),
        ("schedule.warmup_epochs", 4, "warm-up"),
        ("checkpoint.monitor", "top1", "val/top1"),
        ("ema.decay", 1.5, "below 1"),
        ("trainer.use_distributed_sampler", "true", "expected false"),
    ],
    ids=str,
)
def test_wrong_settings(option, value, said, data, tmp_path, capsys):
    argv = [a for a in arguments(data, tmp_path) if not a.startswith(f"--{option}=")]
    assert said in error([*argv, f"--{option}={value}"], capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--optimizer.learning_rate=1"], "unrecognized arguments: --optimizer.learning_rate=1"),
        (["--model.class_weights=[a]"], "--model.class_weights is a: expected float"),
        (["--trainer.callbacks=EarlyStoping"], "Did you mean 'EarlyStopping'?"),
        (["--trainer.callbacks=EarlyStopping"], "EarlyStopping needs --trainer.callbacks.monitor"),
        (["--trainer.callbacks=Timer", "--trainer.callbacks.durations=1"], "Timer has no such field"),
        (["--trainer.callbacks=os.getcwd"], "--allow-code permits it"),
        (["--trainer.logger=TensorBoardLogger"], "TensorBoardLogger needs --trainer.logger.save_dir"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_parser_says_is_a_line(options, said, data, tmp_path, capsys):
    assert fit.main([*arguments(data, tmp_path), *options]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and "<class" not in err


def test_missing_data_folder(tmp_path, capsys):
    (tmp_path / "colours").mkdir()
    said = error(arguments(tmp_path / "colour", tmp_path / "run"), capsys)
    assert "colour" in said and str(tmp_path / "colours") in said


def test_empty_class_folder(tmp_path, capsys):
    for name in ("red", "green"):
        for split in ("train", "test"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            if (split, name) != ("train", "green"):
                Image.new("RGB", (32, 32), name).save(tmp_path / "data" / split / name / "0.png")
    assert "green" in error(arguments(tmp_path / "data", tmp_path / "run"), capsys)


def test_other_settings_in_the_same_folder(trained, data, capsys):
    said = error(arguments(data, trained, optimizer__lr=1e-4), capsys)
    assert "optimizer.lr (0.001 there, 0.0001 here)" in said and "--output" in said
    assert len(list_checkpoints(trained / "checkpoints")) == 2


def test_nan_loss_stops_and_keeps_what_was_saved(data, tmp_path, capsys, monkeypatch):
    compute, steps = classification.Classification.loss, []

    def loss(self, batch):
        steps.append(1)
        return compute(self, batch) * (float("nan") if len(steps) == 8 else 1)

    monkeypatch.setattr(classification.Classification, "loss", loss)
    said = error(arguments(data, tmp_path, checkpoint__every_n_steps=1), capsys)
    assert "loss is nan" in said and "epoch 1" in said and "optimizer.lr" in said
    newest = list_checkpoints(tmp_path / "checkpoints")[0]
    assert newest.name == "step-00000007.ckpt"
    saved = torch.load(newest, weights_only=True)
    assert all(torch.isfinite(value).all() for value in saved["current_model_state"].values())
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(classification.Classification, "loss", compute)
    assert fit.main(arguments(data, tmp_path, checkpoint__every_n_steps=1)) == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_checkpoint_gives_way_to_the_one_before(damage, data, tmp_path):
    argv = arguments(data, tmp_path, trainer__max_epochs=2)
    assert fit.main(argv) == 0
    newest, before = list_checkpoints(tmp_path / "checkpoints")[:2]
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 255
    newest.write_bytes(content[: {"truncated": len(content) // 2, "flipped": None, "empty": 0}[damage]])
    with pytest.raises(CheckpointError, match="damaged"):
        verify(newest)
    with pytest.warns(RuntimeWarning, match="ganglion: the checkpoint .* damaged"):
        assert newest_good(tmp_path / "checkpoints")[0] == before  # pyright: ignore
    with pytest.warns(RuntimeWarning, match="trying the one before"):
        assert fit.main(argv) == 0
    assert read_last(tmp_path)["global_step"] == 10


def test_nothing_readable(data, tmp_path, capsys):
    argv = arguments(data, tmp_path, trainer__max_epochs=2, checkpoint__keep=1)
    assert fit.main(argv) == 0
    (only,) = list_checkpoints(tmp_path / "checkpoints")
    only.write_bytes(b"")
    with pytest.warns(RuntimeWarning):
        assert "can be read" in error(argv, capsys)
    assert only.exists()


FULL_DISK = """
import resource, sys
from ganglion.tasks import fit
import ganglion.training.run_checkpoints as checkpoints

save, saved = checkpoints.AtomicCheckpointIO.save_checkpoint, []

def full_after_two(self, checkpoint, path, storage_options=None):
    if len(saved) == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save(self, checkpoint, path, storage_options)
    saved.append(path)

checkpoints.AtomicCheckpointIO.save_checkpoint = full_after_two
sys.exit(fit.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit the size of files")
def test_full_disk(data, tmp_path):
    """A file-size limit stands for the full disk: the write fails in its middle, in the same call."""
    command = [sys.executable, "-c", FULL_DISK, *arguments(data, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "cannot write the checkpoint" in done.stderr and "Earlier checkpoints are intact" in done.stderr
    assert "Traceback" not in done.stderr
    left = list_checkpoints(tmp_path / "checkpoints")
    assert [p.name for p in left] == ["step-00000004.ckpt", "step-00000002.ckpt"]
    for path in left:
        verify(path)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert fit.main(arguments(data, tmp_path)) == 0


def test_unwritable_output(data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "file" in error(arguments(data, tmp_path / "file" / "run"), capsys)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="a superuser may write everywhere"
)
def test_no_permission(data, tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "Permission denied" in error(arguments(data, locked / "run"), capsys)


def test_failed_write_leaves_no_trace(tmp_path):
    io = AtomicCheckpointIO()
    io.save_checkpoint({"a": torch.ones(3)}, tmp_path / "step-00000001.ckpt")
    with pytest.raises(Exception, match=r"pickle|local"):
        io.save_checkpoint({"a": lambda: 0}, tmp_path / "step-00000002.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.ckpt"]


def test_a_run_from_an_exported_folder_outlives_it(trained, data, tmp_path):
    """Its checkpoints say how the network is built, not where its description once was."""
    shutil.copytree(trained / "model", tmp_path / "begin")
    argv = arguments(
        data, tmp_path / "run", model__name=f"local-dir:{tmp_path / 'begin'}", model__pretrained="true"
    )
    assert fit.main([*argv, "--trainer.max_epochs=1", "--schedule.warmup_epochs=0"]) == 0
    shutil.rmtree(tmp_path / "begin")
    (newest,) = list_checkpoints(tmp_path / "run" / "checkpoints")[:1]
    assert load_model(newest).name == load_model(tmp_path / "run" / "model").name == "test_vmamba"
