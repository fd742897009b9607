"""Networks from folders, training checkpoints and published files, and what is said when they are wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import timm
import torch
from timm.models import _registry, save_for_hf

from ganglion.models import CheckpointError
from ganglion.models.official import to_official
from ganglion.tasks.loading import load_model

NAMES = ["ant", "bee", "crab"]
DATA_CONFIG = {
    "input_size": [3, 40, 40],
    "interpolation": "bilinear",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.2],
    "crop_pct": 0.8,
    "crop_mode": "center",
}


def network(name: str = "test_vmamba", seed: int = 0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, **{"num_classes": 3, **kwargs}).eval()


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.fixture
def folder(tmp_path):
    save_for_hf(
        network(),
        tmp_path / "model",
        {"label_names": NAMES},
        safe_serialization=True,
        data_config=DATA_CONFIG,
    )
    return tmp_path / "model"


def training(path, name="test_vmamba", *, averaged=None, **changes):
    """What a training run leaves behind, as far as loading goes."""
    made_of = {
        "model": name,
        "model_args": {"in_chans": 3},
        "num_classes": 3,
        "data_config": DATA_CONFIG,
        "class_names": NAMES,
    }
    content = {"epoch": 3, "state_dict": under("network.", network(name).state_dict())}
    content["state_dict"]["class_weights"] = torch.ones(3)
    if averaged is not None:
        content["current_model_state"] = content["state_dict"]
        content["state_dict"] = under("network.", averaged.state_dict())
    torch.save(content | {"ganglion": made_of | changes}, path)
    return path


def assert_computes(loaded, expected) -> None:
    x = torch.randn(2, 3, 40, 40)
    assert not loaded.network.training
    torch.testing.assert_close(loaded.network(x), expected(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["test_vmamba", "test_convnext"], ids=["ours", "timm's"])
def test_exported_folder_and_the_weights_in_it(tmp_path, name):
    expected = network(name)
    save_for_hf(expected, tmp_path, {"label_names": NAMES}, safe_serialization=True, data_config=DATA_CONFIG)
    for checkpoint in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        for model in (None, name):
            loaded = load_model(checkpoint, model=model)
            assert_computes(loaded, expected)
            assert (loaded.name, loaded.class_names, loaded.num_classes) == (name, NAMES, 3)
            found = {key: loaded.data_config[key] for key in DATA_CONFIG}
            assert json.loads(json.dumps(found)) == DATA_CONFIG
            assert name in loaded.description and str(tmp_path) in loaded.description


@pytest.mark.parametrize("name", ["test_sparx_mamba", "test_convnext"], ids=["ours", "timm's"])
def test_training_checkpoint(tmp_path, name):
    loaded = load_model(training(tmp_path / "last.ckpt", name))
    assert_computes(loaded, network(name))
    assert (loaded.name, loaded.class_names) == (name, NAMES)
    assert json.loads(json.dumps(loaded.data_config)) == DATA_CONFIG


def test_averaged_weights_of_a_training_checkpoint(tmp_path):
    averaged = network(seed=1)
    loaded = load_model(training(tmp_path / "last.ckpt", averaged=averaged))
    assert_computes(loaded, averaged)
    assert "averaged" in loaded.description


def test_arguments_of_the_network_come_back(tmp_path):
    args = {"scan": "bidi", "depths": [1, 1, 1, 1]}
    expected = network(**args, in_chans=1)
    content = {
        "state_dict": under("network.", expected.state_dict()),
        "ganglion": {
            "model": "test_vmamba",
            "model_args": {**args, "in_chans": 1},
            "num_classes": 3,
            "data_config": DATA_CONFIG | {"input_size": [1, 40, 40], "mean": [0.5], "std": [0.5]},
            "class_names": None,
        },
    }
    torch.save(content, tmp_path / "a.ckpt")
    loaded = load_model(tmp_path / "a.ckpt")
    assert tuple(loaded.data_config["input_size"]) == (1, 40, 40) and loaded.class_names is None
    x = torch.randn(1, 1, 40, 40)
    torch.testing.assert_close(loaded.network(x), expected(x), rtol=0, atol=0)


@pytest.mark.parametrize("classes", [3, 1000])
def test_published_file_of_any_number_of_classes(tmp_path, classes):
    expected = network(num_classes=classes)
    torch.save({"model": to_official(expected.state_dict(), "vmamba")}, tmp_path / "released.pth")
    loaded = load_model(tmp_path / "released.pth", model="test_vmamba")
    assert_computes(loaded, expected)
    assert loaded.data_config["input_size"][1:] == expected.default_cfg["input_size"][1:]
    if classes == 3:
        assert loaded.class_names is None and loaded.readable_names() == ["0", "1", "2"]
    else:
        assert loaded.class_names[1] == "n01443537"
        assert loaded.readable_names()[1] == "goldfish, Carassius auratus"


def test_published_weights_of_the_registry(tmp_path, monkeypatch):
    """With what timm knows of a network whose weights are on this machine."""
    expected = network(num_classes=1000)
    safetensors.torch.save_file(expected.state_dict(), tmp_path / "weights.safetensors")
    cfg = replace(timm.get_pretrained_cfg("test_vmamba"), file=str(tmp_path / "weights.safetensors"))
    monkeypatch.setitem(_registry._model_pretrained_cfgs, "test_vmamba", cfg)
    assert_computes(load_model("test_vmamba"), expected)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot load the published weights of test_vmamba"):
        load_model("test_vmamba")
    with pytest.raises(CheckpointError, match=r"Invalid pretrained tag \(in99k\)"):
        load_model("test_vmamba.in99k")


def test_no_random_weights():
    with pytest.raises(CheckpointError, match="no published weights of test_sparx_mamba are known"):
        load_model("test_sparx_mamba")


def test_imagenet_labels_of_a_file_are_read_in_words(tmp_path):
    labels = ["n02123045", "n01443537", "n07753592"]
    loaded = load_model(training(tmp_path / "a.ckpt", class_names=labels))
    assert loaded.class_names == labels
    assert loaded.readable_names() == ["tabby, tabby cat", "goldfish, Carassius auratus", "banana"]


def test_words_that_the_folder_brings(tmp_path):
    config = {"label_names": NAMES, "label_descriptions": {"bee": "a bee", "crab": "a crab"}}
    save_for_hf(network(), tmp_path, config, safe_serialization=True)
    assert load_model(tmp_path).readable_names() == ["ant", "a bee", "a crab"]


def test_labels_with_gaps(tmp_path):
    """A network may have more outputs than its data have classes."""
    assert load_model(training(tmp_path / "a.ckpt", class_names=["ant"])).class_names == [
        "ant",
        "1",
        "2",
    ]
    save_for_hf(network(), tmp_path, {"label_names": {0: "ant", 2: "crab"}}, safe_serialization=True)
    assert load_model(tmp_path).class_names == ["ant", "1", "crab"]


def test_contradictions(folder, tmp_path):
    training(tmp_path / "a.ckpt")
    for checkpoint in (folder, tmp_path / "a.ckpt"):
        with pytest.raises(ValueError, match=r"said to be 'test_sparx_mamba'.* holds 'test_vmamba'"):
            load_model(checkpoint, model="test_sparx_mamba")
    with pytest.raises(CheckpointError, match="names 4 classes, the network has 3"):
        load_model(training(tmp_path / "b.ckpt", class_names=["a", "b", "c", "d"]))


def test_names(tmp_path):
    with pytest.raises(ValueError, match=r"'vmamba_nanoo'\. Did you mean 'vmamba_nano'"):
        load_model(tmp_path, model="vmamba_nanoo")
    torch.save({"model": network().state_dict()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth' does not say which network it holds"):
        load_model(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="does not say how test_convnext was built"):
        load_model(tmp_path / "a.pth", model="test_convnext")
    with pytest.raises(ValueError, match=r"no file 'vmamba_nanoo'; .* Did you mean 'vmamba_nano'"):
        load_model("vmamba_nanoo")


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
