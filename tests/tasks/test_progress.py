"""What a run shows: first what it will do, then lines that fit a terminal, then what to do next."""

from __future__ import annotations

import csv
import io
import itertools
import re
import sys
import types
import warnings

import numpy as np
import pytest
from PIL import Image

from ganglion.tasks import fit
from ganglion.training import messages, progress
from ganglion.training.messages import in_options

from .runs import arguments, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six images of three classes, in folders."""
    folder = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 3)):
        for name in ("ant", "bee", "crab"):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def test_first_what_it_does_then_what_to_do_next(folders, tmp_path, capfd):
    options = {"data__val_split": "validation", "data__batch_size": 4, "trainer__accumulate_grad_batches": 2}
    argv = arguments(folders, tmp_path / "a run", trainer__max_epochs=2, optimizer__lr=2e-3, **options)
    assert fit.main(argv) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    titles = ("network", "images", "training", "validation", "device", "batch", "schedule", "run")
    assert [line.split()[0] for line in lines if line[:1].isalpha()][: len(titles)] == list(titles)
    for said in (
        "test_vmamba, 165 k parameters, 3 classes",
        "24 images (train), 3 classes: ant ... crab",
        "9 images (validation), 3 classes: ant ... crab",
        "cpu, ",
        "4 x 2 = 8 images",
        "2 epochs of 3 steps; adamw, lr 1e-06 to 0.002 in 1 epochs, then cosine to 1e-05",
        str(tmp_path / "a run"),
    ):
        assert said in re.sub(r"\n {12}", " ", out), said
    assert err == ""  # no warning of a library
    after = out.partition(f"trained; the network is in {tmp_path / 'a run' / 'model'}\n")[2]
    assert f"ganglion validate --checkpoint '{tmp_path / 'a run' / 'model'}' --data {folders}\n" in after
    assert f"ganglion predict --checkpoint '{tmp_path / 'a run' / 'model'}' IMAGE" in after
    rows = [line for line in lines if re.match(r"^ *\d/2 ", line)]
    assert len(rows) == 2 and all(len(row) <= 80 for row in rows)
    header = lines[lines.index(rows[0]) - 1]
    assert header.split() == [
        "epoch",
        "loss",
        "val/loss",
        "val/top1",
        "val/top5",
        "images/s",
        "left",
        "lr",
        "GiB",
    ]
    assert len(header) == len(rows[0])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [80, 40])
def test_nothing_is_wrapped_on_a_terminal(width, data, tmp_path, monkeypatch):
    """Whatever is written into a line, before it is written anew or ended, fits."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", Terminal())
    seconds = itertools.count(0.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.chdir(tmp_path)
    assert fit.main(arguments(data, "run", trainer__max_epochs=2)) == 0
    lines = re.split(r"[\r\n]+", sys.stdout.getvalue())
    bars = [line.removesuffix("\x1b[K") for line in lines if line.startswith("epoch ")]
    assert len(bars) >= 12 and all(len(bar) < width for bar in bars), bars
    for bar in bars:
        assert re.match(r"epoch \d/2  (validation )?\d/\d  (#*-* *|loss .*)", bar), bar
        if width == 80 and "validation" not in bar:
            assert re.search(r"  #+-*  loss \d+\.\d{4}  \d+ images/s  \d:\d\d:\d\d left", bar), bar
    rows = [row for row in (line.replace("\x1b[K", "") for line in lines) if re.match(r"^ *\d/2 ", row)]
    assert len(rows) == 2 and all(len(row) <= width for row in rows)


@pytest.mark.parametrize("width", range(5, 140, 9))
def test_parts_are_whole_or_left_out(width):
    parts = ["epoch 12/300", "100/1251", "loss 2.0314", "1034 images/s", "26:03:04 left", "lr 1.0e-03"]
    for line in (progress.bar_line(parts, 0.4, width), progress.fitting(parts, width)):
        assert len(line) <= width
        if width > len(parts[0]):
            words = {word for part in parts for word in part.split()}
            assert all(word in words or set(word) <= {"#", "-"} for word in line.split())
    cells = {"epoch": "12/300", "loss": "2.0314", "val/top1": "71.25", "left": "1:00:00"}
    header, row = progress.table_row(cells, width)
    assert len(header) == len(row) and (len(row) <= width or row.strip() == "12/300")


def test_off_says_nothing_of_its_progress(data, tmp_path, capfd):
    assert (
        fit.main(
            arguments(data, tmp_path, trainer__max_epochs=1, progress__show="off", schedule__warmup_epochs=0)
        )
        == 0
    )
    out, err = capfd.readouterr()
    assert out.startswith("trained; ") and err == ""
    assert (tmp_path / "log.csv").exists()


def test_the_log_has_numbers_as_a_person_writes_them(data, tmp_path):
    assert fit.main(arguments(data, tmp_path, trainer__max_epochs=2)) == 0
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name, value in row.items():
            assert re.fullmatch(r"-?\d+(\.\d+)?(e-?[1-9]\d*)?", value) and len(value) <= 11, (name, value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0000000000000002e-06, "1e-6"),
        (0.000927312345, "0.000927312"),
        (31.25, "31.25"),
        (1.5e-07, "1.5e-7"),
        (3, "3"),
    ],
)
def test_numbers(value, text):
    assert progress.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (-3, "0:00:00"), (93784, "26:03:04"), (360000, "4 d 4 h")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_the_profiler_prints(data, tmp_path, capfd):
    options = {"trainer__max_epochs": 1, "trainer__profiler": "simple", "schedule__warmup_epochs": 0}
    assert fit.main(arguments(data, tmp_path, **options)) == 0
    out = capfd.readouterr().out
    assert "Profiler Report" in out.partition("trained; ")[2] and "run_training_batch" in out


def test_warnings_are_ours_or_of_use(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        messages.quiet_libraries()
        warnings.warn("ganglion: the disk is slow", RuntimeWarning, stacklevel=1)
        warnings.warn("the `val_dataloader` returned 0 batches", stacklevel=1)
        warnings.warn("deprecated", FutureWarning, stacklevel=1)
        warnings.warn("The NVIDIA driver on your system is too old\n(found version 1)", stacklevel=1)
    assert [warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in seen] == [
        "ganglion fit: warning: the disk is slow\n",
        "ganglion fit: warning: The NVIDIA driver on your system is too old (found version 1)\n",
    ]


@pytest.mark.parametrize(
    ("message", "argv", "said"),
    [
        ("OptimizerConfig.lr is -1", ["--optimizer.lr", "-1"], "--optimizer.lr is -1"),
        ("OptimizerConfig.lr is -1", ["--config", "a.yaml"], "optimizer.lr is -1"),
        ("Augmentation.hflip is 3", ["--data.augmentation={hflip: 3}"], "--data.augmentation.hflip is 3"),
        ("VMambaConfig.scan: no", ["--model.model_args", "{scan: x}"], "--model.model_args.scan: no"),
        (
            "expected a smaller data.batch_size",
            ["--data.batch_size=9"],
            "expected a smaller --data.batch_size",
        ),
        (
            "`accelerator='foo'` is wrong",
            ["--trainer.accelerator", "foo"],
            "`--trainer.accelerator='foo'` is wrong",
        ),
        (
            "invalid value -3 for max_steps",
            ["--trainer.max_steps=-3"],
            "invalid value -3 for --trainer.max_steps",
        ),
        ("on 2 devices", ["--trainer.devices=2"], "on 2 devices"),
    ],
)
def test_errors_name_the_option_as_it_was_written(message, argv, said):
    assert in_options(message, argv) == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"model__name": "test_sparx_mamba", "data__batch_size": 1, "model__mixing": "{}"},
            "--data.batch_size is 1",
        ),
        ({"model__model_args": "{scann: bidi}"}, "Did you mean 'scan'"),
        (
            {"model__model_args": "{scan: bidii}"},
            "--model.model_args.scan: unknown value 'bidii'. Did you mean 'bidi'",
        ),
        ({"model__name": "resnet18", "model__model_args": "{scan: bidi}"}, "--model.model_args: "),
        ({"model__pretrained": "true"}, "--model.pretrained asks for the published weights of test_vmamba"),
        ({"data__augmentation": "{auto_augment: foo}"}, "--data.augmentation.auto_augment is 'foo'"),
        ({"trainer__accelerator": "foo"}, "--trainer.accelerator='foo'"),
        ({"trainer__max_epochs": -7}, "--trainer.max_epochs"),
        ({"trainer__profiler": "foo"}, "--trainer.profiler"),
        ({"trainer__strategy": "foo"}, "--trainer.strategy='foo'"),
        ({"trainer__precision": "transformer-engine"}, ""),
        ({"progress__every_n_seconds": -1}, "--progress.every_n_seconds is -1"),
    ],
    ids=str,
)
def test_mistakes_end_in_a_line(options, said, data, tmp_path, capsys):
    with warnings.catch_warnings():
        assert fit.main(arguments(data, tmp_path, **options)) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("ganglion fit: error: ") and "Traceback" not in err and said in err, err


def test_a_traceback_for_who_asks(data, tmp_path, monkeypatch):
    monkeypatch.setenv("GANGLION_TRACEBACK", "1")
    with pytest.raises(ValueError, match="auto_augment"):
        fit.main(arguments(data, tmp_path, data__augmentation="{auto_augment: foo}"))
