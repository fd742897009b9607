"""`ganglion draw`: pictures with their numbers beside them, run in this process."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganglion.analysis import effective_receptive_field, layer_similarity, mean_off_diagonal, scan_map
from ganglion.analysis.scans import layer_inputs, scan_layers
from ganglion.tasks.loaded_model import load_model
from ganglion_cli import main
from tests.cli.networks import MEAN, SIZE, STD, export, picture


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("draw")
    export(folder / "model")
    for i in range(6):
        picture(folder / "images" / f"{i}.png", seed=i)
    return folder


def draw(capsys, *argv: object) -> tuple[str, str]:
    assert main(["draw", *map(str, argv)]) == 0
    return capsys.readouterr()


def refused(capsys, status: int, *argv: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["draw", *map(str, argv)])
    assert stop.value.code == status
    return capsys.readouterr().err


def numbers(path: Path) -> tuple[list[dict[str, str]], dict[str, np.ndarray]]:
    """What lies beside a picture."""
    with open(path.with_suffix(".csv"), newline="") as file, np.load(path.with_suffix(".npz")) as arrays:
        return list(csv.DictReader(file)), dict(arrays)


def inputs(files: Path, names: list[str]) -> torch.Tensor:
    """The whole image, resized to a square; by hand."""
    found = []
    for name in names:
        image = (
            Image.open(files / "images" / name).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        )
        values = (np.asarray(image, dtype=np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        found.append(torch.from_numpy(values).permute(2, 0, 1))
    return torch.stack(found)


def test_receptive_fields(files, tmp_path, capsys):
    argv = ("erf", files / "model", "--images", files / "images", "--both", "--stage", 1, -1, "-o")
    out, _ = draw(capsys, *argv, tmp_path / "erf.png", "--max-images", 6)
    assert Image.open(tmp_path / "erf.png").size[0] >= 600
    rows, arrays = numbers(tmp_path / "erf.png")
    assert len(rows) == 2 * 2 * 4 and "20 %" in out and "untrained (seed 0)" in out
    network = load_model(files / "model").network
    expected = effective_receptive_field(network, inputs(files, [f"{i}.png" for i in range(6)]), 1)
    trained = arrays["2.test_vmamba.trained.stage1"]
    np.testing.assert_allclose(trained, expected, atol=1e-6 * float(expected.max()))
    assert np.abs(arrays["0.test_vmamba.untrained.stage1"] - trained).max() > 0.01 * trained.max()
    caption = str(arrays["caption"])
    for said in ("test_vmamba", str(files / "model"), "6 images", f"{SIZE} x {SIZE}", "seed 0", "untrained"):
        assert said in caption


def test_maps_of_the_scan(files, tmp_path, capsys):
    layer = "stages.1.blocks.0.mixer"
    argv = (
        "scan",
        files / "model",
        "--image",
        files / "images" / "2.png",
        "--layer",
        layer,
        "--size",
        64,
        96,
    )
    draw(capsys, *argv, "--pixel", 3, 7, "--mode", "CB", "ww", "-o", tmp_path / "scan.svg")
    rows, arrays = numbers(tmp_path / "scan.svg")
    assert [row["row"] for row in rows[::5]] == ["CB reads", "CB is read by", "ww reads", "ww is read by"]
    assert (
        "right, then down" in (tmp_path / "scan.svg").read_text() or rows[0]["map"] == "0: right, then down"
    )
    image = Image.open(files / "images" / "2.png").convert("RGB").resize((96, 64), Image.Resampling.BICUBIC)
    values = (np.asarray(image, dtype=np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    network = load_model(files / "model").network
    x, earlier = layer_inputs(network, torch.from_numpy(values).permute(2, 0, 1)[None])[layer]
    mixer = scan_layers(network)[layer]
    for row, (mode, reads) in enumerate((("CB", True), ("CB", False), ("ww", True), ("ww", False))):
        for column, route in enumerate((0, 1, 2, 3, None)):
            expected = scan_map(mixer, x, mode, route, query=(3, 7), reads=reads, earlier=earlier)
            np.testing.assert_allclose(arrays[f"{row}.{column}"], expected, rtol=1e-5, atol=1e-6)
    for view, shape in (("matrix", (15, 15)), ("diagonal", (3, 5)), ("rows", (3, 5))):
        path = tmp_path / f"{view}.pdf"
        draw(
            capsys,
            *argv[:-3],
            "--size",
            48,
            72,
            "--layer",
            "stages.2.blocks.0.mixer",
            "--view",
            view,
            "-o",
            path,
        )
        found = numbers(path)[1]
        assert path.read_bytes().startswith(b"%PDF") and found["0.4"].shape == shape
        np.testing.assert_allclose(sum(found[f"0.{k}"] for k in range(4)), found["0.4"], rtol=1e-4, atol=1e-6)


def test_similarity(files, tmp_path, capsys):
    argv = (
        "similarity",
        files / "model",
        "--images",
        files / "images",
        "--batch-size",
        6,
        "--features",
        "block",
    )
    out, _ = draw(capsys, *argv, "-o", tmp_path / "cka.png")
    rows, arrays = numbers(tmp_path / "cka.png")
    network = load_model(files / "model").network
    expected = layer_similarity(network, [inputs(files, [f"{i}.png" for i in range(6)])], "block")
    np.testing.assert_allclose(arrays["0.test_vmamba"], expected, atol=1e-5)
    assert f"{mean_off_diagonal(expected):.4f}" in out
    assert rows[1]["layer"] == "stages.0.blocks.0" and rows[1]["other_layer"] == "stages.1.blocks.0"
    _, said = draw(capsys, *argv[:-3], 4, "-o", tmp_path / "short.png")
    assert "1 of 2 batches were dropped" in said
    two = ("similarity", files / "model", "test_sparx_mamba", "--untrained", "--between", "--size", SIZE)
    draw(capsys, *two, "--images", files / "images", "-o", tmp_path / "two.png")
    assert numbers(tmp_path / "two.png")[1]["0.test_vmamba, test_sparx_mamba"].shape == (5, 9)


def test_memory_and_connections(files, tmp_path, capsys):
    out, _ = draw(
        capsys, "memory", files / "model", "--images", files / "images", "-o", tmp_path / "memory.png"
    )
    rows, arrays = numbers(tmp_path / "memory.png")
    assert len(rows) == 5 * 4 and arrays["steps"].shape == (20, 5) and "stages.2.blocks.1.mixer" in out
    assert rows[0]["way"] == "right, then down"
    draw(capsys, "connections", "test_sparx_mamba", "-o", tmp_path / "plan.svg")
    assert "<svg" in (tmp_path / "plan.svg").read_text() and (tmp_path / "plan.csv").exists()


def test_an_image_that_is_none_is_left_out_among_others(files, tmp_path, capsys):
    folder = tmp_path / "images"
    picture(folder / "a.png", seed=1)
    (folder / "b.png").write_bytes(b"no picture")
    _, said = draw(capsys, "memory", files / "model", "--images", folder, "-o", tmp_path / "m.png")
    assert "b.png: skipped" in said and "1 image of" in str(numbers(tmp_path / "m.png")[1]["caption"])


def test_refusals(files, tmp_path, capsys, monkeypatch):
    images, out = ("--images", files / "images"), ("-o", tmp_path / "x.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.png").write_bytes(b"no picture")
    model, one = files / "model", ("--image", files / "images" / "1.png")
    for status, message, argv in (
        (2, "expected a name that ends in .png, .svg, .pdf", ("memory", model, *images, "-o", "x.gif")),
        (1, "no images below", ("erf", model, "--images", tmp_path / "empty", *out)),
        (1, "none.png", ("erf", model, "--images", tmp_path / "none.png", *out)),
        (2, "there is no such file", ("erf", model, "--images", tmp_path / "nowhere", *out)),
        (1, "1 image: the estimate", ("similarity", model, "--images", files / "images" / "1.png", *out)),
        (1, "ResNet has no scans", ("memory", "test_resnet", "--untrained", *images, *out)),
        (1, "it can have the effective receptive field", ("scan", "test_resnet", "--untrained", *one, *out)),
        (1, "Did you mean", ("erf", "vmamba_nan", "--untrained", *images, *out)),
        (1, "--untrained", ("similarity", "vmamba_nano", *images, *out)),
        (2, "stages.1.blocks.0.mixer", ("scan", model, *one, "--layer", "?", *out)),
        (2, "is a folder, expected an image", ("scan", model, "--image", files / "images", *out)),
        (1, "no 'mixer' to compare: expected block, or names of its modules, such as ['conv1'",
         ("similarity", "test_resnet", "--untrained", *images, *out)),
        (1, "no 'scan' to compare: expected mixer, or block, or names",
         ("similarity", "test_vit", "--untrained", "--features", "scan", *images, *out)),
        (1, "should be divisible by patch size (16). expected another --size",
         ("erf", "test_vit", "--untrained", "--size", 45, 77, *images, *out)),
        (1, "expected another --size", ("similarity", "levit_128s", "--untrained", "--size", 100, *images, *out)),
        (1, "position (9, 9)", ("erf", model, "--position", 9, 9, *images, *out)),
        (1, "stage 7", ("erf", model, "--stage", 7, *images, *out)),
        (2, "--between needs two networks, got 1", ("similarity", model, "--between", *images, *out)),
        (1, "unknown module", ("similarity", model, "--features", "stages.9", *images, *out)),
        (2, "did you mean", ("erv", model, *images, *out)),
    ):  # fmt: skip
        assert message.lower() in refused(capsys, status, *argv).lower(), argv
    assert not list(tmp_path.glob("x.*"))
    monkeypatch.setattr("ganglion.analysis.scan_maps.LIMIT", 100)
    argv = ("scan", model, *one, "--view", "matrix", *out)
    assert "the limit is 100" in refused(capsys, 1, *argv)
    (tmp_path / "x.csv").write_text("mine")
    argv = ("memory", model, *images, *out)
    assert "x.csv is there already" in refused(capsys, 2, *argv)
    draw(capsys, *argv, "--overwrite")
    assert (tmp_path / "x.csv").read_text() != "mine"
