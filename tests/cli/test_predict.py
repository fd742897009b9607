"""`ganglion predict`, run in this process."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from ganglion.tasks.classification.prediction import draw
from ganglion_cli import main
from tests.cli.networks import NAMES, export, network, picture, preprocess
from tests.real_data import real_data


@pytest.fixture
def model(tmp_path):
    return str(export(tmp_path / "model"))


@pytest.fixture
def pictures(tmp_path):
    """a.png, sub/b.png, sub/c.png below `photos`."""
    for i, name in enumerate(("a.png", "sub/b.png", "sub/c.png")):
        picture(tmp_path / "photos" / name, seed=i)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def predict(capsys, *argv, status: int = 0) -> str:
    assert main(["predict", *map(str, argv)]) == status
    return capsys.readouterr().out


def error(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["predict", *map(str, argv)])
    said = capsys.readouterr().err
    assert stop.value.code == (2 if "--help)" in said else 1)
    return said


def expected(path) -> list[tuple[str, float]]:
    """Class and probability, the most probable first, by hand."""
    with torch.no_grad():
        probabilities = network()(preprocess(path)).double().softmax(1)[0].tolist()
    return sorted(zip(NAMES, probabilities, strict=True), key=lambda pair: -pair[1])


def test_json_is_what_the_network_computes(capsys, model, pictures):
    report = json.loads(predict(capsys, pictures, "--checkpoint", model, "--json", "--batch-size", 2))
    assert [entry["file"] for entry in report] == [
        str(pictures / n) for n in ("a.png", "sub/b.png", "sub/c.png")
    ]
    for entry in report:
        found = entry["predictions"]
        assert [p["rank"] for p in found] == [1, 2, 3]
        assert [NAMES[p["index"]] for p in found] == [p["label"] for p in found] == [p["name"] for p in found]
        by_hand = expected(entry["file"])
        assert [p["name"] for p in found] == [name for name, _ in by_hand]
        assert [p["probability"] for p in found] == pytest.approx([share for _, share in by_hand], abs=1e-4)
    assert len({entry["predictions"][0]["probability"] for entry in report}) == 3


def test_table_for_people(capsys, model, pictures):
    out = predict(capsys, pictures / "a.png", pictures, "--checkpoint", model, "--top-k", 2)
    title, blank, header, *lines = out.splitlines()
    assert title.startswith("test_vmamba, 3 classes, from ") and not blank
    assert header.split() == ["file", "rank", "probability", "class"]
    assert len(lines) == 6, "the picture that was named twice is there once"
    for i, name in enumerate(("a.png", "sub/b.png", "sub/c.png")):
        best, second = expected(pictures / name)[:2]
        assert lines[2 * i].split() == [str(pictures / name), "1", f"{100 * best[1]:.2f}", "%", best[0]]
        assert lines[2 * i + 1].split() == ["2", f"{100 * second[1]:.2f}", "%", second[0]]
    assert len({line.index("%") for line in lines}) == 1, "the columns are aligned"


def test_unreadable_images_are_reported_and_passed_over(capsys, model, pictures):
    whole = (pictures / "a.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.png").write_bytes(b"")
    options = ("--checkpoint", model, "--batch-size", 2)
    assert main(["predict", str(pictures), str(pictures / "notes.txt"), *map(str, options)]) == 1
    captured = capsys.readouterr()
    for name in ("cut.png", "empty.png", "notes.txt"):
        assert f"{name}: skipped: " in captured.err
    assert sum(name in captured.out for name in ("a.png", "b.png", "c.png")) == 3
    report = json.loads(predict(capsys, pictures, *options, "--json", status=1))
    assert ["error" in entry for entry in report] == [False, True, True, False, False]
    assert report[3]["predictions"][0]["name"] == expected(pictures / "sub/b.png")[0][0]


def test_nothing_but_unreadable_images(capsys, model, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    assert (
        "error"
        in json.loads(predict(capsys, tmp_path / "a.jpg", "--checkpoint", model, "--json", status=1))[0]
    )


def test_the_cameras_rotation_counts(capsys, model, pictures, tmp_path):
    image = Image.open(pictures / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    report = json.loads(
        predict(capsys, pictures / "a.png", tmp_path / "turned.png", "--checkpoint", model, "--json")
    )
    assert report[0]["predictions"] == report[1]["predictions"]


def test_annotated_copies(capsys, model, pictures, tmp_path):
    before = (pictures / "a.png").read_bytes()
    shutil.copy(pictures / "a.png", pictures / "a.jpg")
    out = predict(capsys, pictures, "--checkpoint", model, "--save", tmp_path / "new" / "folder")
    assert str(tmp_path / "new" / "folder") in out
    saved = sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())
    assert saved == ["a.2.predicted.jpg", "a.predicted.jpg", "b.predicted.jpg", "c.predicted.jpg"]
    copy, original = Image.open(tmp_path / "new/folder/b.predicted.jpg"), Image.open(pictures / "sub/b.png")
    assert copy.height > original.height
    left = (copy.width - original.width) // 2
    shown = copy.crop((left, 0, left + original.width, original.height))
    assert shown.getpixel((30, 19)) == pytest.approx(original.convert("RGB").getpixel((30, 19)), abs=12)
    assert (pictures / "a.png").read_bytes() == before


def test_inputs_are_never_overwritten(capsys, model, tmp_path):
    folder = tmp_path / "photos"
    inputs = [picture(folder / f"{name}.png", seed=i) for i, name in enumerate("ab")]
    for file in inputs:
        Image.open(file).save(folder / f"{file.stem}.predicted.jpg")
    (tmp_path / "link").symlink_to(folder)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    predict(capsys, folder, "--checkpoint", model, "--save", tmp_path / "link")
    assert {file: file.read_bytes() for file in before} == before
    assert len(list(folder.iterdir())) == 8


def test_lines_beneath_a_picture():
    def drawn(image, *found):
        return draw(image, {"predictions": [{"name": name, "probability": share} for name, share in found]})

    def bars(image):
        colours = [image.getpixel((x, y)) for y in range(32, image.height) for x in range(image.width)]
        return sum(1 for r, g, b in colours if (r, g, b) == (0xC9, 0xD6, 0xE8))

    small = Image.new("RGB", (32, 32), "red")
    unlikely, likely = (drawn(small, ("x", share)) for share in (0.1, 0.9))
    assert unlikely.size == likely.size and likely.width >= 320
    assert bars(likely) > 5 * bars(unlikely)
    assert drawn(small, ("x", 0.9), ("y", 0.1)).height > likely.height
    assert drawn(small, ("word " * 100, 0.9)).size == likely.size
    assert drawn(small, ("two\nlines\udcff", 0.9)).size == likely.size
    assert drawn(small.convert("L"), ("x", 0.5)).mode == "RGB"


def test_demo_photos(capsys, tmp_path):
    """Any size and shape of photo; ImageNet's words for 1,000 classes."""
    photos = real_data("demo_photos")
    made = export(tmp_path / "model", names=None, made=network(1000))
    report = json.loads(predict(capsys, photos, "--checkpoint", made, "--json", "--save", tmp_path / "out"))
    assert len(report) == 8 == len(list((tmp_path / "out").iterdir()))
    for entry in report:
        assert len(entry["predictions"]) == 5
        assert all(p["label"].startswith("n") and p["name"][0].isalpha() for p in entry["predictions"])
        assert "n0" not in entry["predictions"][0]["name"]


def test_bad_arguments(capsys, model, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    some, of = pictures / "a.png", ("--checkpoint", model)
    for argv, message in [
        ((some,), "expected --checkpoint, --model or both"),
        ((tmp_path / "none.jpg", *of), "there is no image or folder"),
        ((tmp_path / "empty", *of), "no images below"),
        ((some, *of, "--top-k", 0), "'0': expected a whole number of at least 1"),
        ((some, *of, "--device", "gpu"), "--device gpu: "),
        ((some, *of, "--save", tmp_path / "file"), "File exists"),
        ((some, *of, "--model", "test_sparx_mamba"), "said to be 'test_sparx_mamba'"),
        ((some, "--model", "vmamba_nanno"), "Did you mean 'vmamba_nano'?"),
        ((some, "--model", "vmamba_nano"), "no published weights of vmamba_nano are known"),
        ((some, "--checkpoint", tmp_path / "none.ckpt"), "no checkpoint at"),
        ((some, "--checkpoint", tmp_path / "file", "--model", "test_vmamba"), "is empty"),
    ]:
        assert message in error(capsys, *argv), argv


def test_standard_input(capsys, model, pictures, monkeypatch, tmp_path):
    def given(content: bytes):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        return "-", pictures / "a.png", "-", "--checkpoint", model

    argv = given((pictures / "a.png").read_bytes())
    first, second = json.loads(predict(capsys, *argv, "--json", "--save", tmp_path / "out"))
    assert (first["file"], second["file"]) == ("-", str(pictures / "a.png"))
    assert first["predictions"] == second["predictions"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"stdin.predicted.jpg", "a.predicted.jpg"}
    report = json.loads(predict(capsys, *given(b""), "--json", status=1))
    assert "error" in report[0] and "predictions" in report[1]


def test_patterns_and_circles_of_links(capsys, model, pictures):
    (pictures / "sub" / "loop").symlink_to(pictures)
    (pictures / "x[1].png").write_bytes((pictures / "a.png").read_bytes())
    for pattern, names in [
        ("**/*.png", ["a.png", "sub/b.png", "sub/c.png", "x[1].png"]),
        ("s*", ["sub/b.png", "sub/c.png", "sub/loop/a.png", "sub/loop/x[1].png"]),
        ("x[1].png", ["x[1].png"]),
    ]:
        report = json.loads(predict(capsys, pictures / pattern, "--checkpoint", model, "--json"))
        assert [entry["file"] for entry in report] == [str(pictures / name) for name in names]
    assert "nothing matches the pattern" in error(capsys, pictures / "*.webp", "--checkpoint", model)


def test_hidden_files_are_left_out_and_other_kinds_counted(capsys, model, pictures):
    for name in (".hidden.png", "._a.png", ".git/x.png", "__MACOSX/a.png"):
        picture(pictures / name, seed=1)
    assert main(["predict", str(pictures), "--checkpoint", model, "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 3
    assert "1 files left out by their extension: .txt 1" in captured.err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_no_terminal_can_show(model, pictures, encoding):
    content = (pictures / "a.png").read_bytes()
    for name in (b"\xff\xfe.png", b"two\nlines.png", b"\x1b[31mred.png", "\u5b57.png".encode()):
        with open(os.path.join(os.fsencode(pictures), name), "wb") as file:
            file.write(content)
    with open(os.path.join(os.fsencode(pictures), b"bad\xff.png"), "wb") as file:
        file.write(b"no image")
    argv = [
        sys.executable,
        "-m",
        "ganglion_cli",
        "predict",
        str(pictures),
        "--checkpoint",
        model,
        "--top-k",
        "1",
    ]
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(argv, capture_output=True, env=env, timeout=120, check=False)
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 1 and "Traceback" not in err and "bad\\xff.png: skipped: " in err
    for name in ("\\xff\\xfe.png", "two\\nlines.png", "\\x1b[31mred.png"):
        assert f"/{name} " in out
    assert ("\u5b57.png" if encoding == "utf-8" else "\\u5b57.png") in out


def test_copies_are_written_over_only_when_asked_for(capsys, model, pictures, tmp_path):
    argv = (pictures / "a.png", "--checkpoint", model, "--save", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.predicted.jpg").write_text("mine")
    assert "a.predicted.jpg is there already. Expected another folder, or --overwrite" in error(capsys, *argv)
    assert (tmp_path / "out" / "a.predicted.jpg").read_text() == "mine"
    predict(capsys, *argv, "--overwrite")
    assert Image.open(tmp_path / "out" / "a.predicted.jpg").format == "JPEG"


def test_a_failure_is_json_too(capsys, pictures, tmp_path):
    with pytest.raises(SystemExit):
        main(["predict", str(pictures), "--checkpoint", str(tmp_path / "none"), "--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"] in captured.err


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "tried"),
    ],
)
def test_out_of_memory_is_one_line(capsys, monkeypatch, model, pictures, raised, said):
    from ganglion.tasks import prediction

    def greedy(*args):
        raise raised

    monkeypatch.setattr(prediction, "compute", greedy)
    assert main(["predict", str(pictures), "--checkpoint", model, "--json"]) == 1
    captured = capsys.readouterr()
    err = captured.err.splitlines()[-1]
    assert err.startswith("ganglion predict: error: out of memory: ") and said in err
    assert json.loads(captured.out)["error"] in err
