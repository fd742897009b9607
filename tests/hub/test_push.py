"""Networks at a hub: what is pushed to a server on this machine is loaded from there again."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, constants

import ganglion
from ganglion.hub import push
from ganglion.training.exported_folder import export as export_folder
from ganglion_cli import main
from tests.cli.networks import NAMES, export, network, picture

from .networks import DENSE, IMAGES, dense
from .server import TOKEN, Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("GANGLION_OFFLINE", raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier as a run exports it."""
    folder = tmp_path_factory.mktemp("run") / "model"
    training = {
        "measured": {"val/top1": 87.5, "val/loss": 0.4},
        "epochs": 3,
        "recipe": {"seed_everything": 7},
    }
    export_folder(network(), folder, {"class_names": NAMES, "data_config": IMAGES}, training)
    return folder


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_a_classifier_goes_and_comes_back(hub, folder, tmp_path, capsys):
    assert main(["push", str(folder), "me/ants", "--license", "mit", "--private", "--message", "first"]) == 0
    assert f"{hub.address}/me/ants/commit/" in capsys.readouterr().out
    files = hub.repos["me/ants"]
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert hub.private["me/ants"] and hub.messages == ["first"]

    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.pipeline_tag, card.data.library_name) == (
        "mit",
        "image-classification",
        "timm",
    )
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 87.5)
    assert "seed 7" in card.text and 'load_model("hf-hub:me/ants")' in card.text

    expected = ganglion.load_model(folder)
    made = timm.create_model("hf-hub:me/ants", pretrained=True)
    assert same(made, expected.network) and made.pretrained_cfg["label_names"] == NAMES
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    image = picture(tmp_path / "image.jpg", seed=0)
    names: dict = {}
    exec(code.replace("image.jpg", str(image)), names)
    assert same(names["model"].network, expected.network) and names["model"].class_names == NAMES
    for k in range(4):
        picture(tmp_path / "data" / NAMES[k % 3] / f"{k}.png", seed=k)
    assert main(["validate", "--model", "hf-hub:me/ants", "--data", str(tmp_path / "data"), "--json"]) == 0
    assert "images_per_second" in capsys.readouterr().out


@pytest.mark.parametrize("task", DENSE)
def test_dense_networks_go_and_come_back(hub, task, tmp_path):
    made = dense(tmp_path / "model", task)
    push(ganglion.load_model(tmp_path / "model"), "me/dense")
    loaded = ganglion.load_model("hf-hub:me/dense")
    assert loaded.task.name == task and same(loaded.network, made)
    card = ModelCard(hub.repos["me/dense"]["README.md"].decode())
    values = {f"val/{r.metric_name}": r.metric_value for r in card.data.eval_results}
    assert list(values.values()) == list(DENSE[task]["measured"].values())
    assert "over test_vmamba, 3 classes" in card.text and "multiply-accumulates" in card.text
    fetched = huggingface_hub.hf_hub_download("me/dense", "model.safetensors")
    assert Path(fetched).read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()


def test_what_others_have_written_stays(hub, folder, capsys):
    arguments = ["push", str(folder), "me/ants"]
    hub.repos["me/ants"] = {"config.json": b"{}", "README.md": b"theirs"}
    with pytest.raises(SystemExit, match="1"):
        main(arguments)
    assert "no push of ours wrote" in capsys.readouterr().err
    assert hub.repos["me/ants"] == {"config.json": b"{}", "README.md": b"theirs"}
    assert main([*arguments, "--overwrite"]) == 0
    assert b"model-index" in hub.repos["me/ants"]["README.md"]
    hub.repos["me/ants"]["README.md"] = b"---\nlicense: mit\n---\nchanged there"
    assert main(arguments) == 0
    assert hub.repos["me/ants"]["README.md"].endswith(b"changed there")


def test_a_network_of_unknown_accuracy(hub, tmp_path, capsys):
    export(tmp_path / "model")
    arguments = ["push", str(tmp_path / "model"), "me/ants"]
    with pytest.raises(SystemExit, match="1"):
        main(arguments)
    assert "nothing is known of its accuracy" in capsys.readouterr().err and not hub.asked
    assert main([*arguments, "--without-card"]) == 0
    assert set(hub.repos["me/ants"]) == {"config.json", "model.safetensors"}
    own = tmp_path / "card.md"
    own.write_text("---\nlicense: mit\n---\nmine\n")
    assert main([*arguments, "--card", str(own)]) == 0
    assert yaml.safe_load(hub.repos["me/ants"]["README.md"].decode().split("---")[1]) == {"license": "mit"}


@pytest.mark.parametrize(
    "status, said, repo",
    [
        (2, "'ants' is no repository: expected OWNER/NAME", "ants"),
        (2, "expected OWNER/NAME", "me/my/ants"),
        (2, "is no repository", "me/..ants"),
        (1, "the token has no leave to write there", "others/ants"),
    ],
)
def test_names_that_are_refused(hub, folder, capsys, status, said, repo):
    with pytest.raises(SystemExit, match=str(status)):
        main(["push", str(folder), repo])
    assert re.search(re.escape(said).replace("expected", "[Ee]xpected"), capsys.readouterr().err)
    assert not any(hub.repos.values())


def test_without_a_network_or_a_token(hub, folder, capsys, monkeypatch, tmp_path):
    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit, match="1"):
            main([*arguments])
        return capsys.readouterr().err

    assert "there is no such repository" in refused("validate", "--model", "hf-hub:me/none", "--data", "x")
    hub.repos["me/empty"] = {"notes.txt": b"none"}
    assert "no config.json" in refused("validate", "--model", "hf-hub:me/empty", "--data", "x")
    with pytest.raises(ValueError, match="expected OWNER/NAME"):
        ganglion.load_model("hf-hub:ants")

    push(ganglion.load_model(folder), "me/ants")
    with pytest.raises(ganglion.CheckpointError, match="no such revision"):
        ganglion.load_model("hf-hub:me/ants@v9")
    ganglion.load_model("hf-hub:me/ants@main")
    monkeypatch.setenv("GANGLION_OFFLINE", "1")
    before = len(hub.asked)
    assert ganglion.load_model("hf-hub:me/ants").class_names == NAMES  # from the cache
    with pytest.raises(
        ganglion.CheckpointError, match=r"GANGLION_OFFLINE is set: 'hf-hub:me/none' is not in"
    ):
        ganglion.load_model("hf-hub:me/none")
    assert "GANGLION_OFFLINE is set: nothing is uploaded to me/ants" in refused(
        "push", str(folder), "me/ants"
    )
    assert len(hub.asked) == before

    monkeypatch.delenv("GANGLION_OFFLINE")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "hf auth login" in refused("push", str(folder), "me/ants")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "there is no token" in refused("push", str(folder), "me/ants")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused("push", str(folder), "me/ants")
