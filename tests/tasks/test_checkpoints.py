"""Training checkpoints: on the disk before they count, and any damage to them found."""

from __future__ import annotations

import os
import random
import stat
import warnings

import pytest
import timm
import torch

import ganglion
from ganglion.files import seal
from ganglion.models import CheckpointError
from ganglion.tasks import fit
from ganglion.tasks.loaded_model import load_model
from ganglion.training.run_checkpoints import (
    AtomicCheckpointIO,
    list_checkpoints,
    newest_good,
    read_checkpoint,
)

from .runs import PLAIN, arguments, error, read_last, write_data


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """Data, and a run with checkpoints of both of its epochs."""
    folder = tmp_path_factory.mktemp("run")
    data = write_data(folder / "data", train=16)
    assert fit.main(arguments(data, folder / "run", **PLAIN)) == 0
    return data, folder / "run"


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor):
        calls.append("fsync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("replace") or replace(a, b))
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(3)}, tmp_path / "step-00000001.ckpt")
    assert calls == ["fsync file", "replace", "fsync folder"]


def test_loading_checks_every_byte(run_of_two, tmp_path):
    """A flipped bit of a weight: a value of the right type, which torch would take."""
    _, output = run_of_two
    newest = list_checkpoints(output / "checkpoints")[0]
    content, values = (
        bytearray(newest.read_bytes()),
        read_last(output)["state_dict"]["network.head.fc.weight"],
    )
    content[content.index(values.numpy().tobytes())] ^= 1
    path = tmp_path / "step-00000001.ckpt"
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["global_step"] > 0
    with pytest.raises(CheckpointError, match="damaged"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_flipped_bits_are_damage_to_every_reader(run_of_two, tmp_path):
    _, output = run_of_two
    newest, before = list_checkpoints(output / "checkpoints")
    whole, draw = newest.read_bytes(), random.Random(0)
    (tmp_path / before.name).write_bytes(before.read_bytes())
    path = tmp_path / newest.name
    network = timm.create_model("test_vmamba", num_classes=4)
    untouched = {name: value.clone() for name, value in network.state_dict().items()}
    directory = whole.rindex(b"PK\x01\x02", 0, whole.index(b"PK\x01\x02") + 4)
    places = [draw.randrange(len(whole)) for _ in range(12)]
    places += [draw.randrange(directory, len(whole)) for _ in range(18)]
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert newest_good(tmp_path)[0].name == before.name  # pyright: ignore
        assert [w for w in said if "trying the one before" in str(w.message)], place
        with pytest.raises(CheckpointError):
            load_model(path)
        with pytest.raises(CheckpointError):
            ganglion.load_checkpoint(network, path)
    assert all(value.equal(untouched[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("loops", None),  # Lightning would begin at step 0, with trained weights
        ("loops", {"fit_loop": {}}),
        ("epoch_losses", {}),
        ("measured", {"val/top1": "high"}),
        ("state_dict", [1, 2]),
        ("state_dict", {"network.head.fc.weight": "text"}),
        ("optimizer_states", {"0": 1}),
        ("callbacks", 3),
        ("global_step", "ten"),
        ("ganglion", ["vmamba"]),
    ],
)
def test_odd_types_are_damage(entry, value, run_of_two, tmp_path):
    _, output = run_of_two
    path = tmp_path / "step-00000009.ckpt"
    torch.save(read_last(output) | {entry: value}, path)
    seal(path)
    with pytest.raises(CheckpointError, match=entry):
        read_checkpoint(path)


def test_a_checkpoint_of_others_is_neither_used_nor_removed(run_of_two, tmp_path, capsys):
    data, _ = run_of_two
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    theirs = folder / "step-00000100.ckpt"
    torch.save({"state_dict": {}, "global_step": 100, "pytorch-lightning_version": "2.0"}, theirs)
    content = theirs.read_bytes()
    said = error(arguments(data, tmp_path, **PLAIN), capsys)
    assert str(theirs) in said and "no checkpoint of `ganglion fit`" in said
    assert theirs.read_bytes() == content and os.listdir(tmp_path) == ["checkpoints"]


@pytest.mark.parametrize("entry", ["optimizer_states", "callbacks"])
def test_what_cannot_be_restored_is_an_error_of_one_line(entry, run_of_two, tmp_path, capsys):
    """Of the right type, and with other content."""
    data, output = run_of_two
    (tmp_path / "checkpoints").mkdir()
    content = read_last(output)
    odd = {
        "optimizer_states": [{}],
        "callbacks": {name: ["odd"] for name in content["callbacks"]},
    }
    path = tmp_path / "checkpoints" / "step-00000004.ckpt"
    torch.save(content | {entry: odd[entry]}, path)
    seal(path)
    assert str(path) in error(arguments(data, tmp_path, **PLAIN), capsys)
