"""How a run ends, begins again and changes its length: state, log and export are as if it had never been cut."""

from __future__ import annotations

import os
import time

import pytest
import torch

from ganglion.data import loader
from ganglion.tasks import fit, running
from ganglion.tasks.classification import training as classification
from ganglion.training.progress import LOG, read_rows
from ganglion.training.run_checkpoints import list_checkpoints

from .runs import PLAIN, Crash, arguments, differences, error, read_last, run, timeless, tree, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five batches of eight images."""
    return write_data(tmp_path_factory.mktemp("data"), train=40)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of two epochs with all that is random, and averaged weights."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        losses = run(patch, arguments(data, folder, trainer__max_epochs=2))
    return folder, losses


def assert_same_run(folder, whole) -> None:
    """State, log and export, bit for bit."""
    for key in ("state_dict", "current_model_state", "optimizer_states", "epoch_losses", "averaging_state"):
        assert differences(read_last(folder)[key], read_last(whole)[key], key) == []
    assert timeless(folder) == timeless(whole)
    assert tree(folder / "model") == tree(whole / "model")


def test_a_finished_run_exports_its_averages_again(data, whole, capsys):
    folder, _ = whole
    before = tree(folder / "model")
    for argv in (arguments(data, folder, trainer__max_epochs=2), ["--resume", str(folder)]):
        assert fit.main(argv) == 0
        assert tree(folder / "model") == before
        assert "epoch" not in capsys.readouterr().out.replace("epochs", "")
    for name in before:
        (folder / "model" / name).unlink()
    assert fit.main(["--resume", str(folder)]) == 0
    assert tree(folder / "model") == before


def test_killed_between_the_last_checkpoint_and_the_export(data, whole, tmp_path, monkeypatch):
    def crash(*args, **options):
        raise Crash

    argv = arguments(data, tmp_path, trainer__max_epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(running, "export", crash)
        with pytest.raises(Crash):
            fit.main(argv)
    assert not (tmp_path / "model").exists()
    assert run(monkeypatch, argv) == []
    assert_same_run(tmp_path, whole[0])


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_max_steps_ends_a_run_as_a_signal_does(steps, data, whole, tmp_path, monkeypatch, capsys):
    folder, losses = whole
    argv = arguments(data, tmp_path, trainer__max_epochs=2)
    assert run(monkeypatch, [*argv, f"--trainer.max_steps={steps}"]) == losses[:steps]
    said = capsys.readouterr().out
    assert f"trainer.max_steps {steps} is reached" in said and "--resume" in said and "trained" not in said
    assert not (tmp_path / "model").exists()
    assert run(monkeypatch, [*argv, f"--trainer.max_steps={steps}"]) == []  # there is nothing to do
    assert "is reached" in capsys.readouterr().out
    assert run(monkeypatch, argv) == losses[steps:]
    assert_same_run(tmp_path, folder)


def test_max_time_ends_a_run_as_a_signal_does(data, whole, tmp_path, monkeypatch, capsys):
    """Ten seconds a step, and 25 seconds to a command: the same command three or four times."""
    folder, losses = whole
    clock = [0.0]
    compute = classification.Classification.loss

    def loss(self, batch):
        clock[0] += 10
        return compute(self, batch)

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(classification.Classification, "loss", loss)
    argv = arguments(data, tmp_path, trainer__max_epochs=2, trainer__max_time="00:00:00:25")
    parts = []
    while "trained" not in (said := capsys.readouterr().out):
        assert "trainer.max_time is over" in said or not parts
        parts.append(run(monkeypatch, argv))
    assert [len(part) for part in parts] == [3, 3, 3, 1]
    assert [loss for part in parts for loss in part] == losses
    assert_same_run(tmp_path, folder)


def test_a_run_whose_length_is_in_steps_resumes_within_the_epoch(data, tmp_path, monkeypatch):
    """It ends validated and exported, and a longer one goes on where it ended."""
    options = PLAIN | {"trainer__max_epochs": -1, "schedule__name": "constant", "schedule__warmup_epochs": 0}
    losses = run(monkeypatch, arguments(data, tmp_path / "whole", **options, trainer__max_steps=10))
    first = run(monkeypatch, arguments(data, tmp_path / "parts", **options, trainer__max_steps=7))
    rows = read_rows(tmp_path / "parts" / LOG)
    assert [row["step"] for row in rows] == ["5", "7"] and rows[-1]["val/top1"]
    assert (tmp_path / "parts" / "model" / "config.json").exists()
    assert (
        first + run(monkeypatch, arguments(data, tmp_path / "parts", **options, trainer__max_steps=10))
        == losses
    )
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")
    weights = "model/model.safetensors"
    assert (tmp_path / "parts" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def rates(output) -> list[float]:
    return [float(row["lr"]) for row in read_rows(output / LOG)]


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_a_longer_run_gets_the_schedule_of_its_length(per, data, tmp_path, capsys):
    options = PLAIN | {"schedule__warmup_epochs": 0, "schedule__min_lr": 0, "schedule__per": per}
    assert fit.main(arguments(data, tmp_path / "long", **options | {"trainer__max_epochs": 4})) == 0
    assert fit.main(arguments(data, tmp_path / "short", **options)) == 0
    weights = (tmp_path / "short" / "model" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert fit.main(arguments(data, tmp_path / "short", **options | {"trainer__max_epochs": 4})) == 0
    assert "the run has 20 steps, and had 10 so far" in capsys.readouterr().out
    assert rates(tmp_path / "short")[2:] == rates(tmp_path / "long")[2:]
    assert (tmp_path / "short" / "model" / "model.safetensors").read_bytes() != weights


def test_a_shorter_run_ends_at_the_lowest_rate(data, tmp_path, monkeypatch):
    options = PLAIN | {"schedule__warmup_epochs": 0, "schedule__min_lr": 0}
    run(monkeypatch, arguments(data, tmp_path, **options | {"trainer__max_epochs": 9}), crash_at=8)
    run(monkeypatch, arguments(data, tmp_path, **options))
    assert rates(tmp_path)[-1] == 0


def test_fewer_epochs_than_are_done(data, whole, capsys):
    assert "has 2 epochs behind it" in error(arguments(data, whole[0], trainer__max_epochs=1), capsys)


@pytest.mark.parametrize("epochs", [3, 4])
def test_epochs_without_validation_are_empty(epochs, data, tmp_path, capsys):
    options = PLAIN | {"trainer__max_epochs": epochs, "trainer__check_val_every_n_epoch": 2}
    assert fit.main(arguments(data, tmp_path, **options)) == 0
    measured = [bool(row["val/top1"]) for row in read_rows(tmp_path / LOG)]
    assert measured == [False, True, epochs == 3, True][:epochs]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    column = next(line for line in lines if line[:1] == ["epoch"]).index("val/top1")
    shown = [line[column] != "-" for line in lines if line and line[0].endswith(f"/{epochs}")]
    assert shown == measured
    header = (tmp_path / LOG).read_text().splitlines()[0]
    assert header.startswith("epoch,step,lr,train/loss,val/loss,val/top1,val/top5,")


def test_batch_and_accumulation_may_be_traded(data, tmp_path, monkeypatch, capsys):
    """Within an epoch, in both directions: the images of every step stay what they were."""
    options = PLAIN | {"model__label_smoothing": 0, "checkpoint__every_n_steps": 1}
    whole = run(monkeypatch, arguments(data, tmp_path / "whole", **options))
    halves = {"data__batch_size": 4, "trainer__accumulate_grad_batches": 2}
    found = run(monkeypatch, arguments(data, tmp_path / "parts", **options), crash_at=2)
    small = run(monkeypatch, arguments(data, tmp_path / "parts", **options | halves), crash_at=10)
    assert len(small) == 10  # steps 3 to 7
    found += torch.tensor(small).view(-1, 2).mean(1).tolist()
    found += run(monkeypatch, arguments(data, tmp_path / "parts", **options))
    assert len(found) == 10
    torch.testing.assert_close(torch.tensor(found), torch.tensor(whole), rtol=1e-3, atol=1e-4)
    assert read_last(tmp_path / "parts")["global_step"] == 10
    said = error(arguments(data, tmp_path / "parts", **options | {"data__batch_size": 4}), capsys)
    assert "8 images to an optimizer step" in said and "data.batch_size 8" in said


def test_a_run_that_early_stopping_ended_stays_ended(data, tmp_path, monkeypatch, capsys):
    stopping = "{class_path: EarlyStopping, init_args: {monitor: val/loss, patience: 1, min_delta: 99}}"
    options = PLAIN | {"trainer__max_epochs": 6, "trainer__callbacks": stopping}
    losses = run(monkeypatch, arguments(data, tmp_path, **options))
    assert len(losses) == 10 and "trained" in capsys.readouterr().out
    before = tree(tmp_path)
    assert run(monkeypatch, arguments(data, tmp_path, **options)) == []
    assert "trained" in capsys.readouterr().out and tree(tmp_path) == before


def test_out_of_memory_says_what_helps(data, tmp_path, monkeypatch, capsys):
    def loss(self, batch):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(classification.Classification, "loss", loss)
    said = error(arguments(data, tmp_path, **PLAIN), capsys)
    assert "out of memory" in said and "data.batch_size" in said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker has to inherit the patch")
def test_a_killed_worker_says_what_helps(data, tmp_path, monkeypatch, capsys):
    def read(self, key):
        os.kill(os.getpid(), 9)

    monkeypatch.setattr(loader._Images, "__getitem__", read)
    said = error(arguments(data, tmp_path, **PLAIN, data__workers=1), capsys)
    assert "a worker was killed" in said and "data.workers" in said
    assert list_checkpoints(tmp_path / "checkpoints") == []
