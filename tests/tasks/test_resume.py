"""An interrupted run goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ganglion_cli import fit

from .runs import arguments, differences, read_last, run, tree, write_data

#: 44 images in batches of 8: five steps an epoch, the last four images left out; four epochs.
STEPS = 20

#: What Lightning stores of how a run was cut up, not of what it learnt.
_BOOKKEEPING = ("loops", "callbacks", "datamodule_hyper_parameters")


def learnt(output) -> dict:
    checkpoint = read_last(output)
    assert checkpoint["global_step"] == STEPS
    return {key: value for key, value in checkpoint.items() if key not in _BOOKKEEPING}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        losses = run(patch, arguments(write_data(folder / "data"), folder / "run"), main=fit.main)
    assert len(losses) == STEPS and len(set(losses)) == STEPS
    return folder / "data", losses, learnt(folder / "run"), (folder / "run" / "log.csv").read_text()


# Before the first checkpoint, within an epoch, right before and after its end, twice in a run, in the last step.
@pytest.mark.parametrize("crashes", [(1,), (3,), (4,), (5,), (7, 5), (10,), (19,)], ids=str)
def test_resumed_run_equals_uninterrupted(crashes, uninterrupted, tmp_path, monkeypatch):
    data, losses, expected, log = uninterrupted
    argv = arguments(data, tmp_path)
    seen: dict[int, float] = {}
    for crash in (*crashes, None):
        before = sorted((tmp_path / "checkpoints").glob("step-*.ckpt"))
        start = int(before[-1].stem[5:]) if before else 0
        part = run(monkeypatch, argv, crash)
        assert len(part) == (STEPS - start if crash is None else crash)
        seen |= {start + i: value for i, value in enumerate(part)}
    assert [seen[i] for i in range(STEPS)] == losses
    assert differences(learnt(tmp_path), expected) == []
    timeless = [",".join(line.split(",")[:7]) for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert timeless == [",".join(line.split(",")[:7]) for line in log.splitlines()]


def test_more_workers_change_nothing(uninterrupted, tmp_path, monkeypatch):
    data, losses, expected, _ = uninterrupted
    assert run(monkeypatch, arguments(data, tmp_path, data__workers=2), crash_at=8) == losses[:8]
    assert run(monkeypatch, arguments(data, tmp_path, data__workers=1)) == losses[8:]
    assert differences(learnt(tmp_path), expected) == []


def start(argv: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "ganglion", "fit", *argv]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )


def wait_for(output, step: int) -> None:
    end = time.monotonic() + 120
    while not any(int(p.stem[5:]) >= step for p in (output / "checkpoints").glob("step-*.ckpt")):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_kill_9(uninterrupted, tmp_path):
    data, _, expected, _ = uninterrupted
    argv = arguments(data, tmp_path)
    process = start(argv)
    wait_for(tmp_path, step=2)
    process.kill()
    process.communicate()
    assert not (tmp_path / "model").exists()
    process = start(["--resume", str(tmp_path)])
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "resuming from" in output
    assert differences(learnt(tmp_path), expected) == []
    model = tree(tmp_path / "model")
    assert model == tree(data.parent / "run" / "model") and "README.md" in model
    assert torch.equal(
        learnt(tmp_path)["state_dict"]["network.stem.0.conv.weight"],
        expected["state_dict"]["network.stem.0.conv.weight"],
    )


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_ends(signum, uninterrupted, tmp_path):
    data, _, expected, _ = uninterrupted
    argv = arguments(data, tmp_path, checkpoint__every_n_steps="null")
    process = start(argv)
    wait_for(tmp_path, step=5)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, output
    assert "to resume: ganglion fit --resume" in output and "Traceback" not in output
    assert read_last(tmp_path)["global_step"] < STEPS
    assert fit.main(argv) == 0
    assert differences(learnt(tmp_path), expected) == []
    assert tree(tmp_path / "model") == tree(data.parent / "run" / "model")
