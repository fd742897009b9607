"""`ganglion explore`, run in this process; the page itself is in tests/explorer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ganglion.explorer import is_page
from ganglion_cli import main
from tests.cli.networks import NAMES, SIZE, export, picture


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("explore")
    export(folder / "model")
    for i in range(2):
        picture(folder / f"{i}.png", seed=i)
    return folder


def data_of(page: Path) -> dict:
    """What the page holds, as its script reads it."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1]
    )


def refused(capsys, status: int, *argv: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["explore", *map(str, argv)])
    assert stop.value.code == status
    return capsys.readouterr().err


def test_a_page_of_two_images(files, tmp_path, capsys):
    page = tmp_path / "page.html"
    argv = ["explore", files / "model", "--image", files / "0.png", "--image", files / "1.png", "-o", page]
    assert main(list(map(str, argv))) == 0
    assert capsys.readouterr().out == f"{page} (0.1 MB)\n" or page.stat().st_size > 150_000
    data = data_of(page)
    assert [image["name"] for image in data["images"]] == ["0.png", "1.png"]
    assert {c["name"] for c in data["images"][0]["classes"]} == set(NAMES)
    assert data["network"]["size"] == [SIZE, SIZE] and len(data["layers"]) == 5
    assert not re.search(r"""<[^>]+ (src|href)=(?!"data:,"|"#)|url\(|@import""", page.read_text())
    assert is_page(page) and main(list(map(str, argv))) == 0  # a page of ours is replaced
    assert len(data["images"][1]["fields"]) == 4
    other = [*argv[:4], "--size", 64, 96, "--no-fields", "-o", page]
    assert main(list(map(str, other))) == 0
    layer = data_of(page)["layers"][0]
    assert data_of(page)["images"][0]["fields"] == []
    assert (layer["height"], layer["width"]) == (16, 24)


def test_untrained(files, tmp_path, capsys):
    argv = [
        "explore",
        "test_sparx_mamba",
        "--untrained",
        "--image",
        files / "0.png",
        "-o",
        tmp_path / "p.html",
    ]
    assert main(list(map(str, argv))) == 0
    data = data_of(tmp_path / "p.html")
    assert data["network"]["weights"] == "untrained (seed 0)"
    assert any(reads for stage in data["stages"] for reads in stage["reads"])


def test_refusals(files, tmp_path, capsys):
    (tmp_path / "none.png").write_bytes(b"no picture")
    (tmp_path / "mine.html").write_text("<!DOCTYPE html>\nmine")
    model, image, out = files / "model", ("--image", files / "0.png"), ("-o", tmp_path / "x.html")
    for status, message, argv in (
        (1, "ResNet has no scans", ("test_resnet", "--untrained", *image, *out)),
        (1, "it can have the effective receptive field", ("test_resnet", "--untrained", *image, *out)),
        (1, "has no scans", ("test_sparx_swin", "--untrained", *image, *out)),
        (1, "none.png", (model, "--image", tmp_path / "none.png", *out)),
        (2, "there is no such file", (model, "--image", tmp_path / "nowhere.png", *out)),
        (2, "it is a folder, expected an image", (model, "--image", files, *out)),
        (2, "mine.html: it is there already", (model, *image, "-o", tmp_path / "mine.html")),
        (2, "expected a name that ends in .html", (model, *image, "-o", tmp_path / "x.png")),
        (2, "cannot write to the folder", (model, *image, "-o", tmp_path / "no" / "x.html")),
        (2, "expected one or two numbers", (model, *image, "--size", 1, 2, 3, *out)),
        (1, "Did you mean", ("vmamba_nan", "--untrained", *image, *out)),
        (1, "or --untrained", ("vmamba_nano", *image, *out)),
        (1, "has no config.json", (tmp_path, *image, *out)),
    ):  # fmt: skip
        assert message in refused(capsys, status, *argv), argv
    assert not (tmp_path / "x.html").exists()
    assert (tmp_path / "mine.html").read_text().endswith("mine")
    argv = ["explore", model, *image, "-o", tmp_path / "mine.html", "--overwrite"]
    assert main(list(map(str, argv))) == 0 and is_page(tmp_path / "mine.html")
