"""`ganglion fit` over folders as users have them: what is trained on, and what is said instead of a traceback."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from ganglion.tasks import fit
from ganglion.tasks.classification.training import ClassificationData, balanced_weights

from ..tasks.runs import arguments
from .pictures import encode, picture, write_folder

OPTIONS = {
    "data__batch_size": 4,
    "data__val_split": "val",
    "ema__decay": 0,
    "schedule__warmup_epochs": 0,
    "trainer__max_epochs": 1,
}


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path / "data" / split, ["a", "b"], each=4)
    return tmp_path / "data"


@pytest.fixture
def main(tmp_path, capsys):
    """Runs `ganglion fit`; gives its status, output and errors."""

    def run(root, output: str = "run", **options) -> tuple[int, str, str]:
        status = fit.main(arguments(root, tmp_path / output, **OPTIONS | options))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def class_names(tmp_path) -> list[str]:
    return json.loads((tmp_path / "run" / "model" / "config.json").read_text())["label_names"]


def test_folders_as_users_have_them(root, main, tmp_path, recwarn):
    """Nested, hidden, of many formats, with other files among them, and one of no UTF-8 that is no image."""
    for split in ("train", "val"):
        (root / split / ".ipynb_checkpoints").mkdir()
        (root / split / ".ipynb_checkpoints" / "1-checkpoint.png").write_bytes(encode(picture(1)))
        (root / split / "a" / "._0.png").write_bytes(b"\0\5\26\7Mac OS X")
        (root / split / "a" / "2024").mkdir()
        (root / split / "a" / "2024" / "x.gif").write_bytes(encode(picture(1), "GIF"))
        (root / split / "b" / "notes.txt").write_text("")
        with open(os.path.join(os.fsencode(root / split / "b"), b"caf\xe9\n.jpg"), "wb") as file:
            file.write(b"no image")
    status, out, err = main(root, data__max_unreadable=0.5)
    assert status == 0, err
    assert class_names(tmp_path) == ["a", "b"]
    assert "train: 1 files left out by their extension: .txt 1" in out
    assert "val: 1 files left out by their extension: .txt 1" in out
    assert r"b/caf\xe9\n.jpg: empty, or not an image" in out
    assert not [w for w in recwarn if "Total length" in str(w.message)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("flat", "no class folders. Expected .*train/CLASS/0.png"),
        ("stray", r"train/0.png lies beside class folders \(with .*train/a/0.png"),
        ("one class", "the training images are of one class, 'a'"),
        ("empty class", "the class folder .*train/c holds no image"),
        ("empty", "there is no folder 'train' in"),
        ("file", "is neither a folder, nor a .tar, nor an .npz file"),
        ("absent", "unknown data"),
    ],
)
def test_folders_that_cannot_be_meant(change, said, root, main, tmp_path):
    train = root / "train"
    if change in ("flat", "stray"):
        (train / "0.png").write_bytes(encode(picture(0)))
    for name in {"flat": "ab", "one class": "b"}.get(change, ""):
        for file in (train / name).iterdir():
            file.unlink()
        (train / name).rmdir()
    if change == "empty class":
        (train / "c").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    other = {"empty": tmp_path / "empty", "file": tmp_path / "file", "absent": tmp_path / "dat"}
    status, _, err = main(other.get(change, root))
    assert status == 1 and not (tmp_path / "run" / "model").exists()
    assert re.search(said, err), err


def test_no_validation_folder(main, tmp_path):
    write_folder(tmp_path / "data" / "train", ["a", "b"], each=10)
    status, _, err = main(tmp_path / "data", data__val_split="validation")
    assert status == 1 and "unknown split 'validation'. Valid: train." in err and "data.val_split 0.1" in err
    assert main(tmp_path / "data", data__val_split=0.2)[0] == 0
    row = (tmp_path / "run" / "log.csv").read_text()
    assert "val/top1" in row


def test_class_folders_without_splits(main, tmp_path):
    """Set aside a part, or validate nothing; but never measure what was trained on."""
    write_folder(tmp_path / "data", ["a", "b"], each=10)
    assert main(tmp_path / "data", data__val_split=0.2)[0] == 0
    assert class_names(tmp_path) == ["a", "b"]
    status, _, err = main(tmp_path / "data", data__val_split="validation", output="other")
    assert status == 1 and "unknown split 'train'" in err and "data.val_split 0.1" in err


def test_no_validation_is_no_warning(root, main, recwarn):
    status, out, err = main(root, data__val_split="null")
    assert status == 0 and "val/" not in out
    assert not [w for w in recwarn if "Total length" in str(w.message)] and "Total length" not in err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0), ("val_batch_size", -1), ("workers", -1), ("img_size", 0), ("crop_pct", 0), ("crop_pct", 1.1),
        ("mean", [120.0, 115.0, 100.0]), ("std", [0.0]), ("std", [-0.2]), ("std", [58.0]), ("train_limit", 0),
        ("val_limit", -3), ("num_samples", 0), ("max_unreadable", 1.5), ("max_unreadable", float("nan")),
        ("val_split", 0.0), ("val_split", 1.0), ("val_split", "1.5"), ("val_split", -0.1),
    ],
)  # fmt: skip
def test_numbers_out_of_range(field, value):
    with pytest.raises(ValueError, match=rf"^data\.{field} is .*: expected a number"):
        ClassificationData("data", **{field: value})


def test_names_and_fractions():
    for name in ("validation", "2017", "v0.1"):
        assert ClassificationData("data", val_split=name).val_fraction is None
    for fraction in (0.1, "0.1", "1e-1", ".1"):
        assert ClassificationData("data", val_split=fraction).val_fraction == 0.1
    with pytest.raises(ValueError, match=r"data.val_labels x.csv: expected a data.val_split"):
        ClassificationData("data", val_split=0.1, val_labels="x.csv")


def test_balanced_weights():
    """scikit-learn's formula."""
    found = balanced_weights([0, 0, 0, 2, 1, 0], 3)
    assert found.tolist() == pytest.approx([6 / 12, 6 / 3, 6 / 3])
    with pytest.raises(ValueError, match="1 of 4 classes have no training image, such as class 3"):
        balanced_weights([0, 1, 2], 4)


@pytest.mark.parametrize("weights", ["[-1,1]", "[0,0]", "[.nan,1]", "[.inf,1]"])
def test_class_weights_out_of_range(weights, root, main):
    status, _, err = main(root, model__class_weights=weights)
    assert status == 1 and "model.class_weights is" in err


def test_a_killed_loader_worker(root, main, monkeypatch):
    """As the system does when memory runs out; torch raises it wherever the main thread is."""
    parent, read = os.getpid(), ClassificationData.train_dataloader

    def killed(self):
        loader = read(self)
        collate = loader.collate_fn

        def die(samples):
            if os.getpid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)
            return collate(samples)

        loader.collate_fn = die
        return loader

    monkeypatch.setattr(ClassificationData, "train_dataloader", killed)
    status, _, err = main(root, data__workers=1)
    assert status == 1 and "worker was killed" in err and "fewer" in err
