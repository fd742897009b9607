"""What a recipe can switch on: what should only change speed and memory does, and the rest does its work."""

from __future__ import annotations

import os

import numpy as np
import pytest
import timm
import torch
from torch.optim import AdamW

from ganglion.tasks import fit
from ganglion.tasks.classification import training as classification
from ganglion.tasks.loaded_model import load_model
from ganglion.training.optimization import ScheduleConfig, build_schedule

from .runs import arguments, read_last, run, write_data

PLAIN = {
    "model__drop_path_rate": 0,
    "model__drop_rate": 0,
    "model__mixing": "{mixup: 0}",
    "ema__decay": 0,
    "trainer__max_epochs": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), train=40)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return run(patch, arguments(data, tmp_path_factory.mktemp("plain"), **PLAIN))


@pytest.mark.parametrize(
    "options",
    [
        {"model__channels_last": "true"},
        {"model__grad_checkpointing": "true"},
        {"data__workers": 2},
        {
            "optimizer__lr": 2e-3,
            "schedule__warmup_lr": 2e-6,
            "schedule__min_lr": 2e-5,
            "optimizer__lr_batch_size": 16,
        },
    ],
    ids=lambda options: next(iter(options)),
)
def test_neutral_options(options, data, plain, tmp_path, monkeypatch):
    losses = run(monkeypatch, arguments(data, tmp_path, **PLAIN | options))
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain), rtol=1e-4, atol=1e-5)


def test_accumulation_is_a_larger_batch(data, plain, tmp_path, monkeypatch):
    options = PLAIN | {"data__batch_size": 4, "trainer__accumulate_grad_batches": 2}
    halves = run(monkeypatch, arguments(data, tmp_path, **options))
    means = torch.tensor(halves).view(-1, 2).mean(1)
    torch.testing.assert_close(means, torch.tensor(plain), rtol=1e-4, atol=1e-5)
    assert read_last(tmp_path)["global_step"] == len(plain)


def test_accumulated_run_resumes_bit_for_bit(data, tmp_path, monkeypatch):
    options = {"data__batch_size": 4, "trainer__accumulate_grad_batches": 2, "trainer__max_epochs": 2}
    whole = run(monkeypatch, arguments(data, tmp_path / "whole", **options))
    argv = arguments(data, tmp_path / "parts", **options)
    first = run(monkeypatch, argv, crash_at=7)  # between two steps: the last checkpoint is of 4 batches
    assert first[:4] + run(monkeypatch, argv) == whole


def test_half_precision_trains(data, plain, tmp_path, monkeypatch):
    losses = run(monkeypatch, arguments(data, tmp_path, **PLAIN | {"trainer__precision": "bf16-mixed"}))
    assert losses != plain
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain), rtol=0.05, atol=0.05)
    assert all(
        v.dtype == torch.float32 for k, v in read_last(tmp_path)["state_dict"].items() if k.endswith("weight")
    )


def test_class_weights_are_relative(data, plain, tmp_path, monkeypatch):
    def losses(weights):
        options = PLAIN | {"model__class_weights": weights, "model__label_smoothing": 0}
        return torch.tensor(run(monkeypatch, arguments(data, tmp_path / weights, **options), crash_at=3))

    torch.testing.assert_close(losses("[3,3,3,3]"), losses("[1,1,1,1]"))
    assert (losses("[1,1,1,9]") - losses("[1,1,1,1]")).abs().min() > 1e-3


def test_layer_decay_scales_the_learning_rate(data, tmp_path):
    argv = arguments(data, tmp_path, **PLAIN | {"optimizer__layer_decay": 0.5, "trainer__max_epochs": 2})
    assert fit.main(argv) == 0
    groups = read_last(tmp_path)["optimizer_states"][0]["param_groups"]
    scales = {group["lr_scale"] for group in groups}
    assert max(scales) == 1 and len(scales) > 4
    for group in groups:
        assert group["lr"] == pytest.approx(max(g["lr"] for g in groups) * group["lr_scale"])


def test_fine_tuning_takes_all_but_the_classifier(data, tmp_path, monkeypatch, capsys):
    assert fit.main(arguments(data, tmp_path / "first", **PLAIN)) == 0
    weights = tmp_path / "first" / "model" / "model.safetensors"
    begun: dict[str, torch.Tensor] = {}
    compute = classification.Classification.loss

    def loss(self, batch):
        if not begun:
            begun.update({k: v.clone() for k, v in self.network.state_dict().items()})
        return compute(self, batch)

    monkeypatch.setattr(classification.Classification, "loss", loss)
    options = PLAIN | {"model__initial_checkpoint": weights, "model__num_classes": 7}
    assert fit.main(arguments(data, tmp_path / "second", **options)) == 0
    before = read_last(tmp_path / "first")["state_dict"]
    differing = [
        k for k, v in begun.items() if v.shape != (old := before[f"network.{k}"]).shape or not v.equal(old)
    ]
    assert differing == ["head.fc.weight", "head.fc.bias"]


def test_weights_of_another_network_are_refused(data, tmp_path, capsys):
    """Only a classifier of other classes, other input channels and resized positions may differ, and are named."""
    network = timm.create_model("test_vmamba", num_classes=9, in_chans=1)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    argv = arguments(data, tmp_path / "own", **PLAIN | {"model__initial_checkpoint": tmp_path / "own.pth"})
    assert fit.main(argv) == 0
    shown = capsys.readouterr().out
    assert "1 adapted: stem.0.conv.weight" in shown and "2 misshapen: head.fc.weight" in shown
    other = timm.create_model("test_vmamba", depths=(1, 1, 1, 1)).state_dict()
    part = {k: v for k, v in network.state_dict().items() if "stages.2" not in k}
    for name, state in {"other": other, "part": part}.items():
        torch.save(state, tmp_path / f"{name}.pth")
        argv = arguments(
            data, tmp_path / name, **PLAIN | {"model__initial_checkpoint": tmp_path / f"{name}.pth"}
        )
        assert fit.main(argv) == 1
        assert f"{name}.pth' is not of test_vmamba" in "".join(capsys.readouterr())
        assert not list((tmp_path / name).glob("checkpoints/*"))


def test_a_new_classifier_for_as_many_classes(data, tmp_path, monkeypatch, capsys):
    assert fit.main(arguments(data, tmp_path / "first", **PLAIN)) == 0
    weights = tmp_path / "first" / "model" / "model.safetensors"
    old = dict(load_model(weights).network.state_dict())
    begun: list[dict[str, torch.Tensor]] = []
    compute = classification.Classification.loss

    def loss(self, batch):
        begun.append({k: v.clone() for k, v in self.network.state_dict().items()})
        return compute(self, batch)

    monkeypatch.setattr(classification.Classification, "loss", loss)
    for new in ("true", "false"):
        begun.clear()
        options = PLAIN | {"model__initial_checkpoint": weights, "model__new_classifier": new}
        assert fit.main(arguments(data, tmp_path / new, **options)) == 0
        differing = [name for name, value in begun[0].items() if not value.equal(old[name])]
        assert differing == (["head.fc.weight", "head.fc.bias"] if new == "true" else [])
        assert ("the classifier is re-initialised" in capsys.readouterr().out) == (new == "true")


def test_images_of_five_channels(tmp_path):
    """Their statistics are the network's, averaged, and the exported network says so."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        images = rng.integers(0, 256, (16, 32, 32, 5), dtype=np.uint8)
        np.savez(tmp_path / f"bands_{split}.npz", images=images, labels=np.arange(16) % 2)
    options = PLAIN | {"model__in_chans": 5, "data__augmentation": "{crop: pad}", "trainer__max_epochs": 2}
    assert fit.main(arguments(tmp_path, tmp_path / "run", **options)) == 0
    loaded = load_model(tmp_path / "run" / "model")
    assert loaded.data_config["mean"] == pytest.approx([np.mean((0.485, 0.456, 0.406))] * 5)
    assert loaded.network(torch.zeros(1, 5, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_schedule(per):
    """The published cosine after a prefixed warm-up, by hand; then the cool-down."""
    import math

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = AdamW([parameter], lr=1e-3)
    config = ScheduleConfig(per=per, warmup_epochs=4, warmup_lr=1e-6, min_lr=1e-5, cooldown_epochs=2)
    schedule = build_schedule(optimizer, config, epochs=16, updates_per_epoch=5)
    for step in range(16 * 5):
        if per == "step":
            schedule.step_update(step)
        else:
            schedule.step(step // 5)
        epoch = step / 5 if per == "step" else step // 5
        if epoch < 4:
            expected = 1e-6 + (1e-3 - 1e-6) * epoch / 4
        elif epoch < 14:
            expected = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * (epoch - 4) / 10)) / 2
        else:
            expected = 1e-5
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9), step


@pytest.mark.parametrize(
    ("processes", "workers", "threads"), [(1, 0, 8), (1, 3, 5), (1, 9, 1), (2, 1, 3), (8, 4, 1)]
)
def test_loaders_keep_their_cores(processes, workers, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    fit.leave_cores(processes, workers)
    assert asked == [threads]


def test_resume_without_a_name_takes_the_last_run(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert fit.main(arguments(data, "outputs/older", **PLAIN)) == 0
    argv = arguments(data, "outputs/newer", **PLAIN)
    run(monkeypatch, argv, crash_at=7)
    capsys.readouterr()
    assert fit.main(["--resume"]) == 0
    assert "resuming from outputs/newer/checkpoints/step-00000006.ckpt" in capsys.readouterr().out
    assert read_last(tmp_path / "outputs" / "newer")["global_step"] == 10


def test_resume_of_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert fit.main(["--resume"]) == 1
    assert "--resume FOLDER" in capsys.readouterr().err
    assert fit.main(["--resume", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("updates", [1, 2, 7, 100])
@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 40, 300])
def test_the_default_warm_up_fits_every_run(epochs, updates, per):
    """The peak is reached after a tenth of the run, at most five epochs, and the end is near `min_lr`."""
    optimizer = AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    config = ScheduleConfig(per=per)
    schedule = build_schedule(optimizer, config, epochs=epochs, updates_per_epoch=updates)
    lrs = []
    for step in range(epochs * updates):
        schedule.step_update(step) if per == "step" else schedule.step(step // updates)
        lrs.append(optimizer.param_groups[0]["lr"])
    assert max(lrs) == pytest.approx(1e-3)
    assert lrs.index(max(lrs)) <= max(epochs * updates / 10, 0) + 1
    assert lrs.index(max(lrs)) <= 5 * updates
    if epochs * updates > 200 and (per == "step" or epochs > 100):
        assert lrs[-1] < 1.1e-5


def test_a_warm_up_that_was_asked_for_is_kept():
    assert ScheduleConfig(warmup_epochs=7).warmup_of(10) == 7
    assert ScheduleConfig().warmup_of(10) == 1
    assert ScheduleConfig().warmup_of(300) == 5
    assert ScheduleConfig(cooldown_epochs=5).warmup_of(10) == 0.5
