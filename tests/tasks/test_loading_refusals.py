"""Files that are damaged, hostile, or of something else: an error that names file and field."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import torch
from timm.models import save_for_hf

from ganglion.models import CheckpointError
from ganglion.tasks.loaded_model import load_model

from . import test_loading
from .test_loading import network, training

folder = test_loading.folder


def test_another_networks_file(tmp_path):
    torch.save({"model": network("test_sparx_mamba").state_dict()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth' into test_vmamba"):
        load_model(tmp_path / "a.pth", model="test_vmamba")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("kind", ["folder", "ckpt", "pth"])
def test_truncated(folder, tmp_path, kind, share):
    file = {"folder": folder / "model.safetensors", "ckpt": tmp_path / "a.ckpt", "pth": tmp_path / "a.pth"}[
        kind
    ]
    if kind == "ckpt":
        training(file)
    elif kind == "pth":
        torch.save({"model": network().state_dict()}, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=re.escape(str(folder if kind == "folder" else file))):
        load_model(file, model="test_vmamba")


def test_changed_bytes(tmp_path):
    """In the middle of a weight, where only a checksum shows it."""
    file = training(tmp_path / "a.ckpt")
    data = bytearray(file.read_bytes())
    at = data.find(network().state_dict()["stages.0.blocks.0.mixer.in_proj.weight"].numpy().tobytes())
    assert at > 0
    data[at + 10] ^= 0x10
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="wrong checksum"):
        load_model(file)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "config"),
        ("[]", "holds a list"),
        ("{}", "architecture"),
        ('{"architecture": "no_such_net", "pretrained_cfg": {}}', "no_such_net"),
        ('{"architecture": "test_sparx_mamba", "pretrained_cfg": {"num_classes": 3}}', "cannot load"),
        ('{"architecture": "test_vmamba", "model_args": {"scam": 1}, "pretrained_cfg": {}}', "scam"),
        ("[" * 100_000, "is no JSON"),
        (b"\xff\xfe{}", "is no JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_damaged_config(folder, config, message):
    (folder / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())
    with pytest.raises(CheckpointError, match=message) as info:
        load_model(folder)
    assert str(folder) in str(info.value)


#: Values of the wrong kind for every field that loading looks at, each among the right ones of the others.
ODD = {
    "architecture": [None, 3, [], {}, "", "no_such_net", "../test_vmamba"],
    "num_classes": [-1, 2.5, "3", True, [3], {}, 10**12],
    "label_names": ["ant", 3, [[]], [None], {"0": []}, True],
    "label_descriptions": ["a bee", ["a bee"], {"bee": 3}],
    "model_args": [[], "scan", {"num_classes": 4}, {"num_classes": "3"}, {"in_chans": 0}, {"depths": "abc"}]
    + [{"depths": []}, {"depths": [1]}, {"scan": []}, {"d_state": {}}, {"": 1}, {"num_classes": 10**12}],
    "pretrained_cfg": [[], "cfg", 7],
    "pretrained_cfg.input_size": [
        3,
        "40",
        [3, 40],
        [3, 0, 40],
        [3, -1, 1],
        [3, 4.5, 40],
        [3, 10**9, 1],
    ],
    "pretrained_cfg.mean": ["0.5", 0.5, [], ["a"], [[0.5]], [float("nan")] * 3, {"a": 1}],
    "pretrained_cfg.std": [[0, 1, 1], [-1.0] * 3, [float("inf")] * 3, "1", 1],
    "pretrained_cfg.crop_pct": [0, -1, 2, "0.9", [0.9], float("nan")],
    "pretrained_cfg.interpolation": ["cubic", 3, [], ["bicubic"]],
    "pretrained_cfg.crop_mode": ["middle", 0.5, []],
    "pretrained_cfg.num_classes": [-1, "3", 4, 10**12],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in ODD.items() for v in values], ids=repr)
def test_odd_types_in_config_name_file_and_field(folder, field, value):
    config = json.loads((folder / "config.json").read_text())
    *parts, last = field.split(".")
    part = config[parts[0]] if parts else config
    part[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as info:
        load_model(folder)
    message = str(info.value)
    assert str(folder) in message and len(message) < 700
    assert field == "model_args" or last in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 3),
        ("model", "no_such_net"),
        ("model_args", []),
        ("model_args", None),
        ("model_args", {"depths": "abc"}),
        ("model_args", {"in_chans": "3"}),
        ("num_classes", "3"),
        ("num_classes", None),
        ("num_classes", 4),
        ("data_config", [1]),
        ("data_config", None),
        ("data_config", {"input_size": "40"}),
        ("data_config", {"mean": None, "std": [0]}),
        ("class_names", 3),
        ("class_names", [[]]),
    ],
    ids=repr,
)
def test_odd_types_in_training_checkpoints(tmp_path, field, value):
    file = training(tmp_path / "a.ckpt", **({} if field == "model" else {field: value}))
    if field == "model":
        content = torch.load(file, weights_only=True)
        content["ganglion"]["model"] = value
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        load_model(file)


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.zeros(3), "text", 7, None, {}, {"ganglion": None}, {"ganglion": [], "state_dict": {}}]
    + [{"state_dict": 3}, {"model": [1]}, {1: torch.zeros(2)}, {"stem.0.conv.weight": torch.zeros(3, 3)}],
    ids=lambda value: str(value)[:30].replace("\n", ""),
)
@pytest.mark.parametrize("model", ["test_vmamba", None])
def test_files_of_something_else(tmp_path, content, model):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth"):
        load_model(tmp_path / "a.pth", model=model)


@pytest.mark.parametrize("entry", [None, "state_dict"])
def test_training_checkpoints_without_weights(tmp_path, entry):
    file = training(tmp_path / "a.ckpt")
    content = torch.load(file, weights_only=True)
    content["state_dict"] = {} if entry else [1]
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        load_model(file)


@pytest.mark.parametrize("name", ["a.pth", "model/model.safetensors", "model/config.json"])
def test_pipes_are_not_waited_for(folder, tmp_path, name):
    file = tmp_path / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    source = folder if "model" in name else file
    with pytest.raises(CheckpointError, match=r"expected a (regular )?file") as info:
        load_model(source, model="test_vmamba")
    assert str(file) in str(info.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["folder", "ckpt", "pth"])
def test_weights_that_are_not_finite(tmp_path, kind, value):
    bad = network()
    with torch.no_grad():
        bad.head.fc.weight[1, 2] = value
    if kind == "folder":
        save_for_hf(bad, tmp_path / "model", safe_serialization=True)
    elif kind == "ckpt":
        training(tmp_path / "model", averaged=bad)
    else:
        torch.save(bad.state_dict(), tmp_path / "model")
    with pytest.raises(CheckpointError, match="not finite") as info:
        load_model(tmp_path / "model", model="test_vmamba")
    assert "head.fc.weight" in str(info.value)


def test_a_name_is_a_network_also_where_a_folder_is_called_so(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "test_vmamba")
    with pytest.raises(CheckpointError, match="no published weights of test_vmamba are known"):
        load_model("test_vmamba")
    assert load_model("./test_vmamba").name == "test_vmamba"
    torch.save(network().state_dict(), "test_vmamba.pth")  # reads like a name with a tag
    assert load_model("test_vmamba.pth", model="test_vmamba").num_classes == 3


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="No suitable checkpoints"):
        load_model(folder)


def test_folder_of_something_else(folder, tmp_path):
    """A run's folder: what is in it that could be meant."""
    (tmp_path / "checkpoints").mkdir()
    training(tmp_path / "checkpoints" / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"no config\.json") as info:
        load_model(tmp_path)
    assert str(folder) in str(info.value) and "best.ckpt" in str(info.value)
    shutil.rmtree(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors, or a file$"):
        load_model(tmp_path / "empty")


@pytest.mark.parametrize("entry", ["model", "model_args", "num_classes", "data_config", "class_names"])
def test_training_checkpoint_of_another_make(tmp_path, entry):
    file = training(tmp_path / "a.ckpt")
    content = torch.load(file, weights_only=True)
    del content["ganglion"][entry]
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=rf"a\.ckpt.*{entry}"):
        load_model(file)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        load_model(tmp_path / "none.ckpt")
