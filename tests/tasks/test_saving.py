"""When a run saves, and how it ends early."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from ganglion.tasks import fit
from ganglion.tasks.classification import training as classification
from ganglion.training.run_checkpoints import list_checkpoints
from ganglion.training.saving import Checkpoints

from .runs import PLAIN, arguments, differences, error, read_last, run, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), train=40)


def saved_steps(output) -> list[int]:
    return [int(path.stem[5:]) for path in reversed(list_checkpoints(output / "checkpoints"))]


def during(monkeypatch, step: int, what) -> None:
    """Do something in the forward pass of the batch of that number."""
    compute, seen = classification.Classification.loss, []

    def loss(self, batch):
        seen.append(1)
        value = compute(self, batch)
        return what(value) if len(seen) == step else value

    monkeypatch.setattr(classification.Classification, "loss", loss)


@pytest.mark.parametrize(("mode", "expected"), [("max", [1, 0, 1, 0]), ("min", [1, 1, 0, 0])])
def test_best_by_mode(mode, expected):
    saver = Checkpoints(monitor="val/loss", mode=mode)
    found = [saver._improved(SimpleNamespace(measured={"val/loss": v})) for v in (2.0, 1.0, 3.0, 2.0)]  # pyright: ignore
    assert found == list(map(bool, expected))
    assert not saver._improved(SimpleNamespace(measured={}))  # pyright: ignore


@pytest.mark.parametrize(("mode", "values"), [("max", (9.0, 5.0)), ("min", (5.0, 9.0))])
def test_best_is_kept_over_a_resume(mode, values, data, tmp_path, monkeypatch):
    """The second epoch is worse than the first, which an earlier command saw."""

    def measure(self):
        self.log("val/loss", values[self.epoch], rank_zero_only=False)

    monkeypatch.setattr(classification.Classification, "on_validation_epoch_end", measure)
    argv = arguments(data, tmp_path, **PLAIN, checkpoint__monitor="val/loss", checkpoint__mode=mode)
    run(monkeypatch, argv, crash_at=7)
    run(monkeypatch, argv)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert (best["global_step"], read_last(tmp_path)["global_step"]) == (5, 10)


def test_minutes_are_minutes(data, tmp_path, monkeypatch):
    """Twenty seconds a step: a checkpoint every third one."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    compute = classification.Classification.loss

    def loss(self, batch):
        clock[0] += 20
        return compute(self, batch)

    monkeypatch.setattr(classification.Classification, "loss", loss)
    options = PLAIN | {"checkpoint__every_n_minutes": 1, "checkpoint__keep": 9}
    assert fit.main(arguments(data, tmp_path, **options)) == 0
    assert saved_steps(tmp_path) == [3, 5, 8, 10]


def test_the_last_epoch_is_saved_off_the_interval(data, tmp_path):
    options = PLAIN | {
        "checkpoint__every_n_epochs": 3,
        "checkpoint__monitor": "null",
        "trainer__max_epochs": 4,
    }
    assert fit.main(arguments(data, tmp_path, **options, checkpoint__keep=9)) == 0
    assert saved_steps(tmp_path) == [15, 20]


def test_a_signal_inside_an_accumulation_waits_for_the_step(data, tmp_path, monkeypatch):
    options = PLAIN | {"data__batch_size": 4, "trainer__accumulate_grad_batches": 2}
    whole = run(monkeypatch, arguments(data, tmp_path / "whole", **options))
    argv = arguments(data, tmp_path / "parts", **options)
    with monkeypatch.context() as patch:
        during(patch, 3, lambda value: os.kill(os.getpid(), signal.SIGTERM) or value)
        assert fit.main(argv) == 128 + signal.SIGTERM
    saved = read_last(tmp_path / "parts")
    assert saved["global_step"] == 2
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 4
    assert run(monkeypatch, argv) == whole[4:]
    for key in ("state_dict", "optimizer_states"):
        assert differences(read_last(tmp_path / "parts")[key], read_last(tmp_path / "whole")[key]) == []


def test_asked_twice_a_run_ends_at_once(data, tmp_path, monkeypatch):
    """Before the step that a first signal would wait for, and without a checkpoint."""
    before = signal.getsignal(signal.SIGINT)

    def twice(value):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)  # the handlers run before this ends
        return value

    during(monkeypatch, 3, twice)
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            fit.main(arguments(data, tmp_path, **PLAIN))
    finally:
        signal.signal(signal.SIGINT, before)
    assert saved_steps(tmp_path) == []


def test_nothing_is_saved_after_a_loss_that_is_no_number(data, tmp_path, monkeypatch, capsys):
    """Also between two looks of the guard."""
    during(monkeypatch, 3, lambda value: value * float("nan"))
    options = PLAIN | {"checkpoint__every_n_steps": 2, "trainer__log_every_n_steps": 50}
    assert "loss is nan" in error(arguments(data, tmp_path, **options), capsys)
    assert saved_steps(tmp_path) == [2]
