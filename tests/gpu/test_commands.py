"""`ganglion fit` and what follows it, on a GPU: precisions, compile, resume bit for bit, processes of one.

    python -m pytest tests/gpu            # where there is a GPU; with pytest-xdist `-n 8`: under three minutes

Nothing is downloaded. Elsewhere everything here is skipped; GANGLION_TEST_DEVICE=cpu rehearses it on a CPU.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.tasks.runs import ROOT, arguments, differences, read_last, write_data

REHEARSED = os.environ.get("GANGLION_TEST_DEVICE") == "cpu"
pytestmark = [
    pytest.mark.skipif(
        not (torch.cuda.is_available() or REHEARSED), reason="NOT TESTED on a GPU: there is none here"
    ),
    pytest.mark.timeout(170),
]
ACCELERATOR = "cpu" if REHEARSED else "gpu"
FULLY_SHARD = (
    "{class_path: lightning.pytorch.strategies.ModelParallelStrategy, "
    "init_args: {data_parallel_size: 1, tensor_parallel_size: 1, save_distributed_checkpoint: false}}"
)


def command(verb: str, *words: object, kill_after: Path | None = None) -> str:
    """Run `ganglion VERB ...` in a process of its own; returns what it printed.

    kill_after: kill -9 the process as soon as this folder holds a checkpoint.
    """
    argv = [sys.executable, "-m", "ganglion", verb, *map(str, words)]
    # cuBLAS is deterministic only with a workspace of a fixed size.
    env = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NO_COLOR": "1"}
    process = subprocess.Popen(
        argv, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if kill_after is not None:
        end = time.monotonic() + 150
        while process.poll() is None and not list(kill_after.glob("step-*.ckpt")):
            assert time.monotonic() < end, "no checkpoint in 150 s"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        return process.communicate(timeout=20)[0]
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, out + err
    return out


def fit(data: Path, output: Path, kill: bool = False, **options: object) -> str:
    """Two epochs of `test_vmamba`, on the device that is tested."""
    chosen = {"trainer__accelerator": ACCELERATOR, "trainer__max_epochs": 2} | options
    words = arguments(data, output, **chosen)
    return command("fit", *words, kill_after=output / "checkpoints" if kill else None)


def losses(output: Path) -> list[float]:
    """The training loss of every epoch."""
    with (output / "log.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    "options",
    [
        {"trainer__precision": "32-true"},
        {"trainer__precision": "16-mixed"},
        {"trainer__precision": "bf16-mixed", "trainer__accumulate_grad_batches": 2},
        {"trainer__precision": "bf16-mixed", "model__compile": "true"},
        {"trainer__precision": "16-mixed", "model__name": "test_sparx_mamba", "model__compile": "true"},
        {"trainer__precision": "16-mixed", "model__name": "test_sparx_swin"},
        {"trainer__strategy": "ddp", "trainer__devices": 1},
        {
            "trainer__strategy": FULLY_SHARD,
            "trainer__devices": 1,
            "trainer__precision": "bf16-true",
            "ema__decay": 0,
        },
    ],
    ids=["float32", "float16", "bfloat16", "compiled", "sparx", "swin", "ddp", "fully_shard"],
)
def test_run_ends_with_a_network_that_other_commands_take(options, data, tmp_path):
    if REHEARSED and "compile" in str(options):
        pytest.skip("compiling takes minutes on a CPU")
    if REHEARSED and options.get("trainer__precision") == "16-mixed":
        options = options | {"trainer__precision": "bf16-mixed"}
    fit(data, tmp_path / "run", **options)
    found = losses(tmp_path / "run")
    assert len(found) == 2 and all(0 < loss < 10 for loss in found)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["num_classes"] == 4
    checkpoint = read_last(tmp_path / "run")
    assert all(
        value.isfinite().all() for value in checkpoint["state_dict"].values() if value.is_floating_point()
    )


@pytest.mark.parametrize("name", ["test_vmamba", "test_sparx_mamba"])
def test_killed_run_resumes_bit_for_bit(name, data, tmp_path):
    """kill -9, then --resume, against the run that nobody interrupted; float16 with its loss scale, EMA, workers."""
    options = {
        "model__name": name,
        "trainer__precision": "bf16-mixed" if REHEARSED else "16-mixed",
        "trainer__deterministic": "true",
        "data__workers": 2,
        "checkpoint__every_n_steps": 1,
    }
    fit(data, tmp_path / "whole", **options)
    fit(data, tmp_path / "killed", kill=True, **options)
    assert not (tmp_path / "killed" / "model").exists()
    command("fit", "--resume", tmp_path / "killed")
    whole, resumed = read_last(tmp_path / "whole"), read_last(tmp_path / "killed")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "MixedPrecision"):
        assert differences(resumed.get(part), whole.get(part), part) == []


def test_validate_predict_and_info_agree(data, tmp_path):
    """The trained network is measured, used and described by the other verbs, on the same device."""
    fit(data, tmp_path / "run")
    with (tmp_path / "run" / "log.csv").open() as file:
        logged = list(csv.DictReader(file))[-1]
    device = ("--device", "cpu" if REHEARSED else "cuda", "--json")
    trained = ("--checkpoint", tmp_path / "run" / "model")
    (measured,) = json.loads(command("validate", *trained, "--data", data, "--split", "test", *device))[
        "results"
    ]
    assert measured["top1"] == pytest.approx(float(logged["val/top1"]), abs=1e-3)
    assert measured["loss"] == pytest.approx(float(logged["val/loss"]), rel=1e-3)
    image = tmp_path / "image.png"
    Image.new("RGB", (40, 40), (200, 30, 30)).save(image)
    (answer,) = json.loads(command("predict", *trained, image, *device))
    assert sum(entry["probability"] for entry in answer["predictions"]) == pytest.approx(1, abs=1e-4)
    assert json.loads(command("info", "test_vmamba", "--json"))["params"] > 0
