"""Networks from folders, training checkpoints and published files, and what is said when they are wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch
import timm
import torch
from timm.models import _registry, save_for_hf

from ganglion.models import CheckpointError
from ganglion.models.weight_names import to_official
from ganglion.tasks.loaded_model import load_model

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
