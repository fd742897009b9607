"""Folders, tar files, arrays and torchvision's datasets: what is read, and what is said where there is nothing to
read."""

from __future__ import annotations

import gc
import re
import warnings

import numpy as np
import pytest

from ganglion.data import DataError, UnreadableImage, open_dataset
from ganglion.data.source import IndexedSource

from .pictures import (
    encode,
    number,
    odd_pictures,
    opened,
    picture,
    plain,
    unreadable_images,
    write_folder,
    write_tar,
)

UNREADABLE = unreadable_images()


def contents(source) -> list[tuple[int, int]]:
    """Number and label of each picture."""
    assert isinstance(source, IndexedSource)
    pairs = [source.image(i) for i in range(len(source))]
    return [(number(plain(image)), label) for image, label in pairs]


def reasons(source) -> dict[str, str]:
    """Names of the unreadable images, and why."""
    found = {}
    for i in range(len(source)):
        try:
            source.image(i)
        except UnreadableImage as error:
            found[source.name(i)] = str(error)
    return found


def test_folder(tmp_path):
    write_folder(tmp_path / "train", each=3)
    for split in ("train", "training"):  # the folder's name, or timm's synonym
        source = open_dataset(tmp_path, split=split)
        assert contents(source) == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
        assert source.class_names == ["ant", "bee"] and source.num_classes == 2
    assert contents(open_dataset(tmp_path / "train", split="")) == contents(source)
    assert contents(open_dataset(tmp_path, split="train", limit=4)) == contents(source)[:4]


def test_tar(tmp_path):
    folder = write_folder(tmp_path / "images", each=3)
    (folder / "ant" / "bad.jpg").write_bytes(UNREADABLE["truncated.jpg"])
    (folder / "ant" / "folder.jpg").mkdir()
    source = open_dataset(write_tar(folder, tmp_path / "images.tar"), split="train")
    assert source.class_names == ["ant", "bee"] and source.num_classes == 2 and len(source) == 7
    assert list(reasons(source)) == ["ant/bad.jpg"]
    assert contents(open_dataset(tmp_path / "images.tar", split="", limit=3)) == [(0, 0), (1, 0), (2, 0)]


def test_a_tar_file_for_each_split(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for split, each in (("train", 3), ("val", 1)):
        write_tar(write_folder(tmp_path / split, each=each), root / f"{split}.tar")
    assert len(open_dataset(root, split="train")) == 6
    assert contents(open_dataset(root, split="validation")) == [(0, 0), (1, 1)]
    with pytest.raises(DataError, match=r"unknown split 'test'.*Valid: train, val"):
        open_dataset(root, split="test")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_thirteen_channels(kind, tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 13), np.uint8)
    for i, array in enumerate(arrays):
        (tmp_path / "train" / "ab"[i // 2]).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "train" / "ab"[i // 2] / f"{i}.npy", array)
    (tmp_path / "train" / "a" / "9.npy").write_bytes(b"")
    np.save(tmp_path / "train" / "b" / "9.npy", arrays[0, ..., :12])
    root = tmp_path if kind == "folder" else write_tar(tmp_path / "train", tmp_path / "all.tar")
    source = open_dataset(root, split="train", channels=13)
    images = [source.image(i) for i in (0, 1, 3, 4)]
    assert [label for _, label in images] == [0, 0, 1, 1]
    assert all(np.array_equal(image, array.transpose(2, 0, 1)) for (image, _), array in zip(images, arrays))
    found = reasons(source)
    assert list(found) == ["a/9.npy", "b/9.npy"] and "(6, 5, 12)" in found["b/9.npy"]


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_arrays(channels, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 4, channels), np.uint8)
    np.savez(tmp_path / "x_train.npz", images=images, labels=np.array([0, 2, 1, 0, 2], np.uint8))
    source = open_dataset(tmp_path, split="train", channels=channels)
    assert source.num_classes == 3 and source.class_names is None
    for i in range(5):
        image, label = source.image(i)
        assert np.array_equal(plain(image), images[i].transpose(2, 0, 1)) and label == [0, 2, 1, 0, 2][i]
    assert len(open_dataset(tmp_path / "x_train.npz", split="", channels=channels, limit=2)) == 2


def test_grey_arrays_without_a_dimension_for_it(tmp_path):
    np.savez(tmp_path / "x_train.npz", images=np.full((2, 3, 4), 7, np.uint8), labels=np.array([0, 1]))
    assert contents(open_dataset(tmp_path, split="train", channels=1)) == [(7, 0), (7, 1)]


def test_encoded_arrays(tmp_path):
    """An unreadable one is that image alone."""
    parts = [encode(picture(0)), UNREADABLE["text.jpg"], encode(picture(2))]
    offsets = np.cumsum([0, *map(len, parts)])
    np.savez(
        tmp_path / "x_test.npz",
        jpeg=np.frombuffer(b"".join(parts), np.uint8), offsets=offsets, labels=np.array([0, 1, 1]),
        classes=np.array(["ant", "bee"]),
    )  # fmt: skip
    source = open_dataset(tmp_path, split="test")
    assert reasons(source) == {"x_test.npz[1]": "empty, or not an image"}
    assert [number(plain(source.image(i)[0])) for i in (0, 2)] == [0, 2]
    renumbered = open_dataset(tmp_path, split="test", class_map={"bee": 0, "cat": 1, "ant": 2})
    assert [renumbered.image(i)[1] for i in (0, 2)] == [2, 0]
    assert renumbered.class_names == ["bee", "cat", "ant"]
    with pytest.raises(DataError, match=r"training.*: ant$"):
        open_dataset(tmp_path, split="test", class_map={"bee": 0})


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "labels"),
        ({"labels": [0]}, "Expected an npz file with `labels` and `images`"),
        ({"labels": [0, 1], "images": np.zeros((3, 2, 2, 3), np.uint8)}, "3 images and int64 labels"),
        ({"labels": [0.5], "images": np.zeros((1, 2, 2, 3), np.uint8)}, "whole number"),
        ({"labels": [-1], "images": np.zeros((1, 2, 2, 3), np.uint8)}, "from 0 on"),
        ({"labels": np.zeros(0, int), "images": np.zeros((0, 2, 2, 3), np.uint8)}, "expected images"),
        ({"labels": [0], "images": np.zeros((1, 2, 2, 3))}, "float64 images"),
        ({"labels": [0], "images": np.zeros((1, 2, 2, 4), np.uint8)}, "expected uint8 of 3 channels"),
        ({"labels": [2], "images": np.zeros((1, 2, 2, 3), np.uint8), "classes": ["a"]}, "1 classes.*label 2"),
    ],
    ids=str,
)
def test_wrong_arrays(arrays, said, tmp_path):
    np.savez(tmp_path / "x_train.npz", **arrays)
    with pytest.raises(DataError, match=said):
        open_dataset(tmp_path, split="train")


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut off", b"nothing of the kind"])
def test_damaged_arrays(content, tmp_path):
    (tmp_path / "x_train.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*x_train.npz"):
        open_dataset(tmp_path, split="train")


def test_arrays_cut_off(tmp_path):
    np.savez_compressed(
        tmp_path / "a_train.npz", images=np.zeros((9, 9, 9, 3), np.uint8), labels=np.arange(9)
    )
    content = bytearray((tmp_path / "a_train.npz").read_bytes())
    content[60:90] = bytes(30)
    (tmp_path / "a_train.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot read"):
        open_dataset(tmp_path, split="train")


def write_mnist(root, n: int = 3) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.stack([np.full((28, 28), i, np.uint8) for i in range(n)])
    for part, images_, labels in (("train", images, range(n)), ("t10k", images[::-1], range(n))):
        header = (0x0803).to_bytes(4, "big") + b"".join(v.to_bytes(4, "big") for v in images_.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images_.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            (0x0801).to_bytes(4, "big") + n.to_bytes(4, "big") + bytes(labels)
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision(channels, tmp_path):
    write_mnist(tmp_path)
    source = open_dataset(tmp_path, split="train", reader="torch/mnist", channels=channels)
    assert contents(source) == [(0, 0), (1, 1), (2, 2)]
    assert source.image(0)[0].mode == {1: "L", 3: "RGB"}[channels]
    assert source.num_classes == 10 and source.class_names[3] == "3 - three"
    assert contents(open_dataset(tmp_path, split="test", reader="Torch/MNIST")) == [(2, 0), (1, 1), (0, 2)]


def test_torchvisions_folder(tmp_path):
    """Decoded here: unreadable files are reported, and 16 bits are not cut off."""
    folder = write_folder(tmp_path / "val", each=2)
    (folder / "bee" / "2.jpg").write_bytes(UNREADABLE["empty.jpg"])
    (folder / "bee" / "3.png").write_bytes(odd_pictures()["grey16.png"])
    source = open_dataset(tmp_path, split="validation", reader="torch/image_folder")
    assert source.class_names == ["ant", "bee"]
    assert reasons(source) == {"bee/2.jpg": "empty, or not an image"}
    assert np.array_equal(np.asarray(source.image(5)[0]), opened(odd_pictures()["grey16.png"]))


def test_unreadable_files_in_a_folder(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "train", each=2) / "bee"
    for name, content in UNREADABLE.items():
        (folder / name).write_bytes(content)
    (folder / "link.jpg").symlink_to("nowhere")
    (folder / "folder.jpg").mkdir()
    source = open_dataset(tmp_path, split="train")
    found = reasons(source)
    assert found.keys() == {f"bee/{name}" for name in (*UNREADABLE, "link.jpg")}
    assert found["bee/link.jpg"] == "No such file or directory"  # without the path: the name says it
    assert len(source) == 4 + len(found)

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)  # whoever runs the tests may be allowed to read everything
    assert set(reasons(source).values()) >= {"Permission denied"} and len(reasons(source)) == len(source)


def test_every_kind_of_picture_from_a_folder(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    odd = odd_pictures()
    for name, content in odd.items():
        (tmp_path / "train" / "a" / name).write_bytes(content)
    source = open_dataset(tmp_path, split="train")
    found = {source.name(i): np.asarray(source.image(i)[0]) for i in range(len(source))}
    assert found.keys() == {f"a/{name}" for name in odd}
    for name, content in odd.items():
        assert np.array_equal(found[f"a/{name}"], opened(content)), name


def test_a_class_without_validation_images_renumbers_nothing(tmp_path):
    names = ["ant", "bee", "cat"]
    write_folder(tmp_path / "train", names, each=1)
    write_folder(tmp_path / "val", ["ant", "cat"], each=1)
    (tmp_path / "names.txt").write_text("\n".join(names))
    for class_map in ({name: i for i, name in enumerate(names)}, str(tmp_path / "names.txt")):
        source = open_dataset(tmp_path, split="val", class_map=class_map)
        assert contents(source) == [(0, 0), (1, 2)] and source.num_classes == 3
        with pytest.raises(DataError, match=r"known .*: bee$"):
            open_dataset(tmp_path, split="train", class_map={"ant": 0, "cat": 1})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"root": "imagse"}, "unknown data .*Did you mean '.*images'"),
        ({"root": "images", "split": "tset"}, "unknown split 'tset'. Did you mean 'test'"),
        ({"root": "arrays", "split": "train"}, "unknown split 'train'.* Valid: test"),
        ({"root": "images", "split": "empty"}, "holds no image"),
        ({"root": "images", "split": "bare"}, "bare holds no image"),
        ({"root": "images", "reader": "wsd/"}, "unknown reader 'wsd'. Did you mean 'wds'"),
        ({"root": "images", "reader": "wds/"}, "has no _info.json. Expected one"),
        ({"root": "images", "reader": "torch/mnist"}, "timm cannot read torch/mnist"),
        ({"root": "images", "reader": "torch/mnist", "channels": 13}, "1, 3 or 4 channels"),
        ({"root": "images", "limit": 0}, "at least 1"),
        ({"root": "images", "class_map": "none.txt"}, "cannot read none.txt: No such file"),
        ({"root": "file.txt", "split": ""}, "neither a folder"),
    ],
    ids=str,
)
def test_nothing_to_read(options, said, tmp_path):
    write_folder(tmp_path / "images" / "train", each=1)
    write_folder(tmp_path / "images" / "test", each=1)
    (tmp_path / "images" / "empty" / "ant").mkdir(parents=True)
    (tmp_path / "images" / "bare").mkdir()
    (tmp_path / "arrays").mkdir()
    np.savez(tmp_path / "arrays" / "x_test.npz", images=np.zeros((1, 2, 2, 3), np.uint8), labels=[0])
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(DataError, match=said):
        open_dataset(**{"split": "train"} | options | {"root": tmp_path / options["root"]})


def test_no_permission_to_look(tmp_path, monkeypatch):
    write_folder(tmp_path / "train", each=1)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=re.escape(f"cannot read {tmp_path / 'train'}: Permission denied")):
        open_dataset(tmp_path, split="train")


def test_labels_beyond_the_network(tmp_path):
    write_folder(tmp_path / "train", ["a", "b", "c"], each=1)
    source = open_dataset(tmp_path, split="train")
    source.check_classes(3)
    with pytest.raises(DataError, match="the data have 3 classes, the network 2"):
        source.check_classes(2)


def test_open_files_are_closed(tmp_path, recwarn):
    write_folder(tmp_path / "train", each=2)
    (tmp_path / "train" / "bee" / "9.jpg").write_bytes(b"")
    source = open_dataset(tmp_path, split="train")
    warnings.simplefilter("always")
    reasons(source)
    gc.collect()
    assert not [w for w in recwarn if str(tmp_path) in str(w.message)]
    assert number(plain(source.image(0)[0])) == 0  # although its file is closed
