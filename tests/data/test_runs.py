"""`ganglion fit` over unreadable images: counted once, listed at the end of an epoch, and too many stop the run."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ganglion.tasks import fit

from ..tasks.runs import arguments, run
from .pictures import encode, unreadable_images, write_shards

UNREADABLE = unreadable_images()
OPTIONS = {
    "data__name": "",
    "data__batch_size": 4,
    "trainer__max_epochs": 3,
    "ema__decay": 0,
    "model__num_classes": 4,
}


def pictures(n: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encode(Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))) for _ in range(n)]


def write(root, kind: str):
    """24 training images, of which numbers 2, 9 and 17 are unreadable, and 8 test images, of which number 5 is."""
    train, test = pictures(24), pictures(8)
    for place, name in ((2, "truncated.jpg"), (9, "text.jpg"), (17, "empty.jpg")):
        train[place] = UNREADABLE[name]
    test[5] = UNREADABLE["bomb.png"]
    if kind == "wds/":
        return write_shards(root, {"train": [train[:12], train[12:]], "test": [test]})
    for split, contents in (("train", train), ("test", test)):
        for i, content in enumerate(contents):
            (root / split / f"class{i % 4}").mkdir(parents=True, exist_ok=True)
            (root / split / f"class{i % 4}" / f"{i:02d}.jpg").write_bytes(content)
    return root


@pytest.mark.parametrize(("kind", "workers"), [("", 0), ("", 2), ("wds/", 0), ("wds/", 2)])
def test_counted_once_and_listed(kind, workers, tmp_path, capsys):
    root = write(tmp_path / "data", kind)
    options = OPTIONS | {"data__name": kind, "data__workers": workers, "data__max_unreadable": 0.125}
    assert fit.main(arguments(root, tmp_path / "run", **options)) == 0
    out = capsys.readouterr().out
    assert out.count("train: 3 unreadable images") == 1 and out.count("val: 1 unreadable images") == 1
    names = (
        ["train-0.tar/0002", "train-0.tar/0009", "train-1.tar/0017", "test-0.tar/0005"]
        if kind
        else ["class2/02.jpg", "class1/09.jpg", "class1/17.jpg", "class1/05.jpg"]
    )
    for name in names:
        assert out.count(f"  {name}: ") == 1, name


@pytest.mark.parametrize("kind", ["", "wds/"])
def test_too_many_stop_the_run(kind, tmp_path, capsys):
    root = write(tmp_path / "data", kind)
    options = OPTIONS | {"data__name": kind, "data__max_unreadable": 0.1}
    assert fit.main(arguments(root, tmp_path / "run", **options)) == 1
    error = capsys.readouterr().err
    assert "3 of 24 images (12.50%) cannot be used, more than the allowed 10.00%" in error
    assert "02" in error and "truncated" in error and "Traceback" not in error


def test_a_resumed_run_remembers_what_was_unreadable(tmp_path, capsys, monkeypatch):
    """The end of the epoch lists what was met before the interruption, too, and lists nothing twice."""
    root = write(tmp_path / "data", "")
    options = OPTIONS | {"data__max_unreadable": 0.125, "data__workers": 0}
    argv = arguments(root, tmp_path / "run", **options)
    run(monkeypatch, argv, crash_at=4)
    before = capsys.readouterr().out
    assert "unreadable images" not in before
    assert fit.main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("train: 3 unreadable images") == 1 and out.count("val: 1 unreadable images") == 1
    run(monkeypatch, arguments(root, tmp_path / "again", **options), crash_at=9)
    assert capsys.readouterr().out.count("train: 3 unreadable images") == 1
    assert fit.main(arguments(root, tmp_path / "again", **options)) == 0
    assert "unreadable images" not in capsys.readouterr().out


def test_streams_need_the_number_of_classes(tmp_path, capsys):
    root = write(tmp_path / "data", "wds/")
    options = OPTIONS | {"data__name": "wds/", "data__max_unreadable": 0.125, "model__num_classes": "null"}
    assert fit.main(arguments(root, tmp_path / "run", **options)) == 1
    assert "model.num_classes" in capsys.readouterr().err
