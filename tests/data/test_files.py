"""Which files of a folder or a tar file are images, and of which class they are."""

from __future__ import annotations

import io
import os
import tarfile

import pytest
from PIL import Image

from ganglion.data import DataError, UnreadableImage, open_dataset
from ganglion.data.decode import FORMATS, extensions
from ganglion.data.files import FolderFiles, TarFiles, hidden

from .pictures import encode, number, picture, plain, write_folder, write_tar

PNG = encode(picture(7))


def write(root, *paths: str, content: bytes = PNG):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def found(source) -> list[tuple[str, int]]:
    return [(source.name(i), source.image(i)[1]) for i in range(len(source))]


@pytest.fixture(params=["folder", "tar"])
def opened(request, tmp_path):
    """Opens the training split of a root, as it is or packed."""

    def open_(root, **options):
        if request.param == "folder":
            return open_dataset(root, split="train", **options)
        return open_dataset(write_tar(root / "train", tmp_path / "packed.tar"), split="train", **options)

    return open_


def test_the_outer_folder_is_the_class(opened, tmp_path):
    root = write(tmp_path, *(f"train/{c}/{y}/1.png" for c in ("cat", "dog") for y in ("2023", "2024")))
    source = opened(write(root, "train/cat/0.png", "train/dog/a/b/c/2.png"))
    assert source.class_names == ["cat", "dog"]
    assert found(source) == [
        ("cat/0.png", 0), ("cat/2023/1.png", 0), ("cat/2024/1.png", 0),
        ("dog/2023/1.png", 1), ("dog/2024/1.png", 1), ("dog/a/b/c/2.png", 1),
    ]  # fmt: skip


def test_natural_order(opened, tmp_path):
    """Numbers by value; names that only differ in their case have a fixed order, too."""
    source = opened(write(tmp_path, *(f"train/{c}/{i}.png" for c in ("b10", "B9", "b9") for i in (10, 9))))
    assert source.class_names == ["B9", "b9", "b10"]
    assert [name for name, _ in found(source)][:4] == ["B9/9.png", "b9/9.png", "B9/10.png", "b9/10.png"]


def test_no_class_folders(opened, tmp_path):
    with pytest.raises(DataError) as error:
        opened(write(tmp_path, "train/1.png", "train/2.png"))
    assert "holds 2 images, such as " in str(error.value) and "no class folders" in str(error.value)
    for path in ("/1.png,", "/CLASS/1.png"):  # what is there and what is expected
        assert path in str(error.value)


def test_an_image_beside_class_folders(opened, tmp_path):
    with pytest.raises(DataError) as error:
        opened(write(tmp_path, "train/a/1.png", "train/cover.jpg", "train/b/1.png"))
    assert "/cover.jpg lies beside class folders" in str(error.value) and "/a/1.png in one" in str(
        error.value
    )


def test_hidden_names_are_left_out(opened, tmp_path):
    root = write(tmp_path, "train/a/1.png", "train/b/1.png")
    write(
        root, "train/.ipynb_checkpoints/1-checkpoint.png", "train/a/.ipynb_checkpoints/1.png", "train/.hidden.png",
        "train/__MACOSX/a/1.png", "train/b/@eaDir/1.png", "train/b/.DS_Store", content=b"no image",
    )  # fmt: skip
    write(root, "train/a/._1.png", "train/.cache/x", content=b"\0\5\26\7\0\2\0\0Mac OS X")
    (root / "train" / ".empty").mkdir()
    source = opened(root)
    assert source.class_names == ["a", "b"] and found(source) == [("a/1.png", 0), ("b/1.png", 1)]
    assert source.note == ""


def test_hidden():
    for path in (".x", "a/.x", ".x/a", "a/._x.jpg", "__MACOSX/a", "a/__MACOSX/b.jpg"):
        assert hidden(path)
    for path in ("x", "a/x.y", "./x", "../x", "a__MACOSX/b"):
        assert not hidden(path)


def test_a_root_in_a_hidden_folder(tmp_path):
    root = write(tmp_path / ".data", "train/a/1.png", "train/b/1.png")
    assert len(open_dataset(root, split="train")) == 2


def test_other_files_are_counted(opened, tmp_path):
    root = write(
        tmp_path, "train/a/1.png", "train/b/1.png", "train/a/notes.txt", "train/b/2.heic", "train/LICENSE"
    )
    source = opened(write(root, "train/b/3.HEIC"))
    said, _, kinds = source.note.partition(": ")
    assert said == "4 files left out by their extension"
    assert kinds.startswith(".heic 2, ") and set(kinds.split(", ")) == {".heic 2", ".txt 1", "without one 1"}


def test_a_class_folder_without_images(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.heic")
    with pytest.raises(DataError, match=r"class folder .*b holds no image; 1 files left out .*: \.heic 1"):
        open_dataset(tmp_path, split="train")


EXTENSIONS = [
    ("GIF", "gif"), ("AVIF", "avif"), ("JPEG", "jfif"), ("JPEG2000", "jp2"), ("TGA", "tga"), ("ICO", "ico"),
    ("WEBP", "webp"), ("BMP", "BMP"), ("TIFF", "tif"), ("PCX", "pcx"), ("JPEG", "jpe"), ("PNG", "apng"),
]  # fmt: skip


def test_every_format_in_folders(opened, tmp_path):
    for i, (format, extension) in enumerate(EXTENSIONS):
        content = encode(Image.new("RGB", (32, 32), (9, 9, 9)), format)
        write(tmp_path, f"train/a/{i}.{extension}", content=content)
    source = opened(write(tmp_path, "train/b/1.png"))
    assert [name for name, _ in found(source)][:-1] == [f"a/{i}.{e}" for i, (_, e) in enumerate(EXTENSIONS)]
    assert source.note == ""


def test_the_extensions_are_pillows():
    Image.init()
    registered = Image.registered_extensions()
    ours = {extension: format for format, names in FORMATS.items() for extension in names}
    for extension, format in ours.items():
        assert registered[extension] == (format if extension != ".mpo" else "MPO")
    assert {e for e, format in registered.items() if format in FORMATS} == set(ours) - {".mpo"}
    assert set(extensions(3)) == set(ours) and extensions(13) == (".npy",)


def test_links_in_circles(tmp_path):
    root = write(tmp_path, "train/a/x/1.png", "train/b/1.png")
    (root / "train/a/x/up").symlink_to(root / "train/a")
    (root / "train/b/self.png").symlink_to("self.png")
    (root / "train/c").symlink_to(root / "train/b")  # a class may well be a link
    assert FolderFiles(root / "train", 3).names == [
        "a/x/1.png", "b/1.png", "b/self.png", "c/1.png", "c/self.png"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_names_that_are_no_utf_8(kind, tmp_path):
    folder = tmp_path / "train"
    for parts in ((b"caf\xe9", b"1.png"), (b"tab\tle", b"2\n\xff.png")):
        os.makedirs(os.path.join(os.fsencode(folder), parts[0]))
        with open(os.path.join(os.fsencode(folder), *parts), "wb") as file:
            file.write(PNG)
    root = tmp_path if kind == "folder" else write_tar(folder, tmp_path / "all.tar")
    source = open_dataset(root, split="train")
    assert source.class_names == [r"caf\xe9", r"tab\tle"]
    assert found(source) == [(r"caf\xe9/1.png", 0), (r"tab\tle/2\n\xff.png", 1)]
    again = open_dataset(root, split="train", class_map={r"tab\tle": 0, r"caf\xe9": 1})
    assert [label for _, label in found(again)] == [1, 0]
    with pytest.raises(DataError, match=r"training\): caf\\xe9$"):
        open_dataset(root, split="train", class_map={r"tab\tle": 0})


def add(tar, name: str, content: bytes = b"", **options) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in options.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("file", "around"), [("train.tar", "train/"), ("val.tar", "./validation/"), ("x.tar", "x/")]
)
def test_a_folder_around_a_tar_file(file, around, tmp_path):
    write_tar(write_folder(tmp_path / "images", each=2), tmp_path / file, around)
    source = open_dataset(tmp_path / file, split="")
    assert source.class_names == ["ant", "bee"] and [number(plain(source.image(i)[0])) for i in range(4)] == [
        0,
        1,
        2,
        3,
    ]


def test_tar_files_in_a_tar_file(tmp_path):
    """As ImageNet's training images come: the inner ones are the classes."""
    with tarfile.open(tmp_path / "train.tar", "w") as outer:
        for label, name in enumerate(("n01", "n02")):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for i in range(2):
                    add(tar, f"{name}_{i}.png", encode(picture(2 * label + i)))
            add(outer, f"{name}.tar", inner.getvalue())
    source = open_dataset(tmp_path, split="train")
    assert source.class_names == ["n01", "n02"]
    assert [(number(plain(image)), label) for image, label in map(source.image, range(4))] == [
        (0, 0), (1, 0), (2, 1), (3, 1)
    ]  # fmt: skip


def test_links_in_a_tar_file(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "./a/1.png", PNG)
        add(tar, "b/1.png", type=tarfile.LNKTYPE, linkname="a/1.png")
        add(tar, "b/2.png", type=tarfile.SYMTYPE, linkname="../a/1.png")
        add(tar, "b/3.png", type=tarfile.SYMTYPE, linkname="nowhere.png")
    source = open_dataset(tmp_path / "x.tar", split="")
    for i in range(3):
        assert number(plain(source.image(i)[0])) == 7
    with pytest.raises(UnreadableImage, match="no content of its own"):
        source.image(3)


@pytest.mark.parametrize("where", ["header", "end", "nothing", "text"])
def test_damaged_tar_files(where, tmp_path):
    """Python's reader takes a damaged header for the end of the file, and would lose what follows."""
    path = write_tar(write_folder(tmp_path / "images", each=2), tmp_path / "x.tar")
    content = bytearray((tmp_path / "x.tar").read_bytes())
    if where == "header":
        content[content.index(b"bee/1.png") + 20] = 1
    damaged = {"header": content, "end": content[:6000], "nothing": b"", "text": b"no tar file" * 100}[where]
    (tmp_path / "x.tar").write_bytes(damaged)
    with pytest.raises(DataError, match=rf"cannot read .*{os.path.basename(path)}"):
        TarFiles(path, 3)
