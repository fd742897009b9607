"""Lists of classes, and of the classes of images, in the forms that users have."""

from __future__ import annotations

import json
import os

import pytest

from ganglion.data import DataError, open_dataset
from ganglion.data.lists import read_classes, read_labels

from .pictures import encode, picture, write_folder

SYNSETS = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"ant\nbee\n", ["ant", "bee"]),
        (b"ant\r\nbee\r\n\r\n  \r\n\n", ["ant", "bee"]),  # blank lines at the end
        (b"\xef\xbb\xbfant\nbee", ["ant", "bee"]),
        ("ant\nKäfer\n".encode("utf-16"), ["ant", "Käfer"]),
        (b" golden retriever \nbee, wild\n", ["golden retriever", "bee, wild"]),
        (SYNSETS.encode(), ["n01440764", "n01443537"]),
        (b"n01440764 x\nant\n", ["n01440764 x", "ant"]),  # only some look like it
        (b'["ant", "bee"]', ["ant", "bee"]),
        (b'\xef\xbb\xbf{"ant": 0, "bee": 1}', ["ant", "bee"]),
        (b'{"bee": 1, "ant": 0}', ["ant", "bee"]),
        (b'{"0": "ant", "1": "bee"}', ["ant", "bee"]),
        (b'{"1": ["n2", "bee"], "0": ["n1", "ant"]}', ["n1", "n2"]),  # imagenet_class_index.json
        (b'{"7": 0, "3": 1}', ["7", "3"]),
        (json.dumps({str(i): f"c{i}" for i in range(12)}).encode(), [f"c{i}" for i in range(12)]),
        (b"a\tb\nc", [r"a\tb", "c"]),  # as a folder of that name is shown
    ],
    ids=repr,
)
def test_classes(content, expected, tmp_path):
    for name in ("list.txt", "list.json") if content.lstrip(b"\xef\xbb\xbf")[:1] in b"[{" else ("list.txt",):
        (tmp_path / name).write_bytes(content)
        assert read_classes(tmp_path / name) == {name: i for i, name in enumerate(expected)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "names no class"),
        (b"\n \n", "names no class"),
        (b"[]", "names no class"),
        (b"ant\n\nbee", "line 2 is blank"),
        (b"\nant", "line 1 is blank"),
        (b"ant\nbee\nant\n", "names the class 'ant' twice, as numbers 0 and 2"),
        (b'["ant", "ant"]', "'ant' twice"),
        (b'{"ant": 0, "ant": 1}', "the key 'ant' twice"),
        (b'{"ant": 0, "bee": 0}', "0 stands twice"),
        (b'{"ant": 0, "bee": 2}', "1 is missing"),
        (b'{"1": "ant", "2": "bee"}', "0 is missing"),
        (b'{"0": "ant", "1": 3}', "class 1 is 3: expected a list of names"),
        (b'{"0": "ant", "1": []}', "expected a list of names"),
        (b'{"a": "b"}', "expected a list of names"),
        (b'{"a": true}', "expected a list of names"),
        (b"[1, 2]", "class 0 is 1"),
        (b'{"ant": 0', "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"caf\xe9\n", "no text in UTF-8"),
        (b"\x80\x04}\x94.", "no text in UTF-8"),  # a pickle, which timm would read
    ],
    ids=lambda value: repr(value)[:40],
)
def test_no_classes(content, said, tmp_path):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        read_classes(tmp_path / "list.txt")
    assert str(tmp_path / "list.txt") in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none.txt: No such file"):
        read_classes(tmp_path / "none.txt")
    with pytest.raises(DataError, match="Is a directory"):
        read_classes(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="not a regular file"):
            read_classes(tmp_path / "pipe")


IMAGES = ["v_1.JPEG", "v_2.JPEG", "sub/v_3.JPEG"]
CLASSES = {"n2": 0, "n1": 1}


@pytest.mark.parametrize(
    "content",
    [
        "n1\nn2\nn1\n",
        "\ufeffn1\r\nn2\r\nn1\r\n\r\n",
        "2\n1\n2\n",  # of the two lines of the class list
        "1\n0\n1\n",
        "ImageId,PredictionString\nv_2,n2 1 2 3 4 n2 9 9 9 9\nv_1,n1 85 1 499 272\nv_3,n1 3 4 5 6\n",
        "v_2.JPEG,n2\nv_1.JPEG,n1\nsub/v_3.JPEG,n1",
        "file,label\nv_1,2\nv_2,1\nv_3,2\n",
        "v_1.JPEG\tn1\nv_2.JPEG\tn2\nv_3\tn1\n",
        "v_1.JPEG n1\nv_2.JPEG n2\n\nsub/v_3.JPEG n1\n",
        "v_1.JPEG 1\nv_2.JPEG 0\nv_3.JPEG 1\n",
    ],
    ids=repr,
)
def test_labels(content, tmp_path):
    (tmp_path / "labels").write_text(content)
    assert read_labels(tmp_path / "labels", IMAGES, CLASSES) == ["n1", "n2", "n1"]
    if "n1" in content:
        assert read_labels(tmp_path / "labels", IMAGES) == ["n1", "n2", "n1"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no label"),
        ("n1\nn2\n", "has 2 lines for 3 images"),
        ("n1\nn2\nn9\n", "unknown class 'n9'. Valid: n1, n2"),
        ("3\n1\n1\n", "numbers 1 to 3 of 2 classes: expected 0 to 1 or 1 to 2"),
        ("1\n1\n1\n", "and the first or the last of them"),  # counted from 0 or from 1: nobody can tell
        ("v_1,n1\nv_2,n2\n", "no label for 1 of 3 images, such as sub/v_3.JPEG"),
        ("v_1,n1\nv_1,n2\nv_2,n1\n", "two labels for the image 'v_1'"),
        ("v_1,n1\nv_4,n2\n", "unknown image 'v_4'. Did you mean"),
        ("v_1,n1\nv_2\nv_3,n1", "'v_2' names no class"),
        ("v_1,n1\nv_2,\nv_3,n1", "names no class"),
    ],
    ids=repr,
)
def test_wrong_labels(content, said, tmp_path):
    (tmp_path / "labels").write_text(content)
    with pytest.raises(DataError, match=said):
        read_labels(tmp_path / "labels", IMAGES, CLASSES)


def test_numbers_need_a_class_list(tmp_path):
    (tmp_path / "labels").write_text("1\n2\n1\n")
    with pytest.raises(DataError, match="expected a class_map beside it"):
        read_labels(tmp_path / "labels", IMAGES)


def test_a_flat_validation_folder(tmp_path):
    """As ImageNet's comes."""
    write_folder(tmp_path / "train", ["n00000001", "n00000002"], each=2)
    (tmp_path / "val").mkdir()
    for i in range(1, 4):
        (tmp_path / "val" / f"v_{i}.JPEG").write_bytes(encode(picture(i), "JPEG"))
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nv_3,n00000001 1 2 3 4 \nv_1,n00000002 1 2 3 4 \nv_2,n00000001 1 2 3 4 \n"
    )
    (tmp_path / "truth.txt").write_text("1\n00000002\n00000002\n")
    (tmp_path / "synsets.txt").write_text("n00000002 a bee\nn00000001 an ant\n")
    training = open_dataset(tmp_path, split="train")
    known = {name: i for i, name in enumerate(training.class_names)}
    source = open_dataset(tmp_path, split="val", labels="LOC_val_solution.csv", class_map=known)
    assert source.labels() == [1, 0, 0] and source.class_names == ["n00000001", "n00000002"]
    listed = str(tmp_path / "synsets.txt")
    assert open_dataset(tmp_path, split="train", class_map=listed).labels() == [1, 1, 0, 0]
    source = open_dataset(tmp_path, split="val", labels=str(tmp_path / "truth.txt"), class_map=listed)
    assert source.labels() == [0, 1, 1] and source.class_names == ["n00000002", "n00000001"]
    # The order of the training folders is not that of the numbers.
    with pytest.raises(DataError, match="expected a class_map beside it"):
        open_dataset(tmp_path, split="val", labels="truth.txt", class_map=known)
    with pytest.raises(DataError, match=r"no class folders.*data.val_labels"):
        open_dataset(tmp_path, split="val")
