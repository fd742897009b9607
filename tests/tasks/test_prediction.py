"""`ganglion.predict` from Python: what an image may be, and what comes back."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import ganglion
from ganglion.tasks.evaluation import NetworkError
from ganglion.tasks.prediction import predictions
from tests.cli.networks import NAMES, export, network, picture, preprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(tmp_path_factory.mktemp("predict") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return ganglion.load_model(folder)


@pytest.fixture
def file(tmp_path):
    return picture(tmp_path / "a.png", seed=3)


def by_hand(file) -> list[float]:
    with torch.no_grad():
        return sorted(network()(preprocess(file)).double().softmax(1)[0].tolist(), reverse=True)


def test_plain_dictionaries_of_what_the_network_computes(model, file):
    (entry,) = ganglion.predict(model, file)
    assert json.loads(json.dumps(entry)) == entry
    assert entry["file"] == str(file)
    found = entry["predictions"]
    assert [p["rank"] for p in found] == [1, 2, 3]
    assert [p["probability"] for p in found] == pytest.approx(by_hand(file), abs=1e-4)
    assert all(p["name"] == p["label"] == NAMES[p["index"]] for p in found)


def test_every_form_of_an_image_is_the_same_image(model, file):
    image = Image.open(file).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [file, str(file), file.read_bytes(), io.BytesIO(file.read_bytes()), image, array, tensor]
    with open(file, "rb") as stream:
        forms.append(stream)
        found = ganglion.predict(model, forms, batch_size=3)
    assert len(found) == 8 and [entry["file"] for entry in found] == [str(file)] * 2 + [None] * 6
    for entry in found:
        assert entry["predictions"] == found[0]["predictions"]
    for batch in (np.stack([array, array]), torch.stack([tensor, tensor])):
        pair = ganglion.predict(model, batch)
        assert [e["predictions"] for e in pair] == [found[0]["predictions"]] * 2


def test_grey_arrays(model):
    grey = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)
    first, second, third = ganglion.predict(
        model, [grey, grey[..., None], np.repeat(grey[..., None], 3, axis=2)], top_k=1
    )
    assert first == second == third and len(first["predictions"]) == 1


def test_what_cannot_be_read_has_an_error_at_its_place(model, file, tmp_path):
    (tmp_path / "cut.png").write_bytes(file.read_bytes()[:60])
    os.mkfifo(tmp_path / "pipe.png")
    images = [tmp_path / "none.png", file, tmp_path / "cut.png", tmp_path / "pipe.png", tmp_path, b""]
    found = ganglion.predict(model, images, batch_size=2)
    assert ["error" in entry for entry in found] == [True, False, True, True, True, True]
    assert [entry["file"] for entry in found] == [*map(str, images[:5]), None]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((40, 40, 3)), r"float64 \(40, 40, 3\): expected uint8 \(H, W\) or"),
        (torch.zeros(3, 40, 40), r"torch.float32 \(3, 40, 40\): expected uint8 \(C, H, W\)"),
        (torch.zeros(40, 40).byte(), "expected uint8"),
        (np.zeros((40, 40, 5), np.uint8), "has 5 channels: the network takes 3"),
        (np.zeros((0, 40, 3), np.uint8), "expected uint8"),
        ([3], "an image is a int"),
        (7, "images is a int"),
    ],
)
def test_what_is_no_image(model, images, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ganglion.predict(model, images)


@pytest.mark.parametrize("option", ["top_k", "batch_size"])
def test_options_out_of_range(model, file, option):
    with pytest.raises(ValueError, match=f"{option} is 0: expected at least 1"):
        ganglion.predict(model, file, **{option: 0})


def test_other_channels(tmp_path):
    torch.manual_seed(0)
    made = timm.create_model("test_vmamba", num_classes=3, in_chans=5).eval()
    timm.models.save_for_hf(
        made,
        tmp_path / "five",
        {"label_names": NAMES},
        safe_serialization=True,
        data_config={"input_size": (5, 40, 40), "mean": (0.5,) * 5, "std": (0.2,) * 5, "crop_pct": 1.0},
    )
    model = ganglion.load_model(tmp_path / "five")
    values = np.random.default_rng(0).integers(0, 256, (40, 40, 5), dtype=np.uint8)
    np.save(tmp_path / "a.npy", values)
    of_file, of_array = ganglion.predict(model, [tmp_path / "a.npy", values])
    pixels = (torch.from_numpy(values).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.2
    with torch.no_grad():
        expected = sorted(made(pixels).softmax(1)[0].tolist(), reverse=True)
    for entry in (of_file, of_array):
        assert [p["probability"] for p in entry["predictions"]] == pytest.approx(expected, abs=1e-4)


def test_output_that_is_not_finite_is_an_error_of_its_image(folder, file, tmp_path):
    model = ganglion.load_model(folder)
    model.network.head.fc.register_forward_hook(
        lambda *args: args[2].index_fill(0, torch.tensor(1), torch.nan)
    )
    found = ganglion.predict(model, [file, file, file])
    assert ["error" in entry for entry in found] == [False, True, False]
    assert "not finite" in found[1]["error"]


def test_the_network_may_be_of_another_dtype(folder, file):
    model = ganglion.load_model(folder)
    (expected,) = ganglion.predict(model, file, top_k=1)
    model.network.bfloat16()
    (found,) = ganglion.predict(model, file, top_k=1)
    exact, rounded = (entry["predictions"][0]["probability"] for entry in (expected, found))
    assert rounded == pytest.approx(exact, abs=0.05) and rounded != exact


def test_a_size_that_the_network_cannot_take(file, tmp_path):
    made = timm.create_model("test_vit", num_classes=3)
    config = {"input_size": (3, 40, 40), "crop_pct": 1.0}
    timm.models.save_for_hf(made, tmp_path / "vit", safe_serialization=True, data_config=config)
    model = ganglion.load_model(tmp_path / "vit")
    with pytest.raises(
        NetworkError, match=r"VisionTransformer cannot compute images of shape \(1, 3, 40, 40\): Input"
    ):
        ganglion.predict(model, file)


def test_no_decoded_image_is_kept(model, file, monkeypatch):
    """Only what the network takes waits for its batch."""
    import weakref

    from ganglion.tasks import prediction

    alive: list[weakref.ref] = []

    def counting(image, channels):
        assert sum(ref() is not None for ref in alive) <= 1
        made = prediction.open_image(image, channels)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(prediction, "read_image", counting)
    assert len(ganglion.predict(model, [file] * 6, batch_size=6)) == 6 == len(alive)


def test_entries_come_as_they_are_computed(model, file):
    asked = []

    def images():
        for i in range(5):
            asked.append(i)
            yield file

    stream = predictions(model, images(), batch_size=2)
    next(stream)
    assert asked == [0, 1]


def test_importing_the_package_leaves_lightning_out():
    code = """
import sys, ganglion
assert callable(ganglion.load_model) and callable(ganglion.predict)
print([name for name in ("lightning", "jsonargparse", "matplotlib", "datasets", "webdataset") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n"
