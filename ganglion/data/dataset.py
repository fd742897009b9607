"""Opens images with labels: finds what there is, has timm read it, and says clearly what is missing."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from timm.data import create_dataset
from timm.utils.misc import natural_key

from ..errors import shown, unknown
from .decode import MAX_PIXELS, MODES, extensions, reason
from .files import SYNONYMS, Files, FolderFiles, TarFiles, hidden, without
from .lists import read_classes, read_labels
from .source import ArraySource, FileSource, ImageSource, ReaderSource, foreign
from .stream import HubSource, ShardSource
from .types import DataError, MissingSplit

_READERS = ("", "hfds", "hfids", "torch", "wds")


def open_dataset(
    root: str | os.PathLike[str],
    *,
    split: str,
    or_root: bool = False,
    reader: str = "",
    channels: int = 3,
    training: bool = False,
    class_map: str | Mapping[str, int] | None = None,
    labels: str | None = None,
    limit: int | None = None,
    num_samples: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImageSource:
    """Open the images of a split.

    In folders and tar files the class of an image is the first folder of its path below the split, however many more
    there are. Hidden files and folders are left out, and so are files by their extension: `note` of the source counts
    the latter.

    root: a folder, a tar file, an npz file, or what `reader` wants; for Hugging Face's, the folder in
        which they keep what they download.
    split: the split's folder or tar file below `root` (or a synonym, such as val for validation), the part of an npz
        file's name behind the last `_`, or the reader's own name for it. "": `root` itself.
    or_root: read `root` itself where it is a folder without any split.
    reader: "" for folders and tar files, or timm's reader: "wds/", "hfds/NAME", "hfids/NAME", "torch/NAME". Folders
        that hold npz files are read as those.
    channels: of the images; 1, 3 and 4 are read from any image file, other numbers from uint8 .npy files (H, W, C) in
        class folders, tar files or shards, or npz arrays.
    class_map: class name -> label, or a file of the names, see `read_classes`. Classes that it does not name are an
        error.
    labels: file of the classes of images that lie in no class folders, see `read_labels`. Its numbers count the lines
        of the class_map's file.
    limit: the first N images only. num_samples: images of an epoch, for a stream that does not say it.
    max_pixels: of an image; larger ones are unreadable.

    Raises DataError where there is nothing to read, and says what there is.
    """
    prefix, _, rest = reader.partition("/")
    prefix = prefix.lower()
    if prefix not in _READERS:
        raise DataError(f"{reader}: " + unknown("reader", prefix, filter(None, _READERS)))
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} images: expected at least 1")
    request = _Request(
        reader=f"{prefix}/{rest}" if prefix else "",
        root=str(root),
        split=split,
        or_root=or_root,
        channels=channels,
        training=training,
        class_map=_classes(class_map, root),
        numbered=isinstance(class_map, str),
        labels=None if labels is None else _list(labels, root),
        num_samples=num_samples,
    )
    try:
        return _open(request, prefix, limit=limit, max_pixels=max_pixels)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or root}: {reason(error)}") from error


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is asked of timm, in our terms; see `open_dataset`."""

    reader: str
    root: str
    split: str
    or_root: bool
    channels: int
    training: bool
    class_map: Mapping[str, int] | None
    numbered: bool
    labels: Path | None
    num_samples: int | None

    def create(self) -> Any:
        """timm's dataset. Raises DataError for what timm cannot open."""
        class_map: Any = self.class_map  # timm takes any mapping, and says dict
        try:
            return create_dataset(
                self.reader,
                root=self.root or None,
                split=self.split,
                search_split=False,
                is_training=self.training,
                class_map=class_map,
                num_samples=self.num_samples,
            )
        except PermissionError:
            raise
        except (
            AssertionError,
            ImportError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise DataError(
                f"timm cannot read {self.reader or 'the images'} ({self.split}) from {self.root}: {error}"
            ) from error


def _open(request: _Request, prefix: str, **options: Any) -> ImageSource:
    """options: limit, max_pixels."""
    options["channels"] = channels = request.channels
    if channels not in MODES and prefix in ("hfds", "hfids", "torch"):
        raise DataError(f"{request.reader} has images of 1, 3 or 4 channels: in_chans is {channels}")
    in_files = not prefix or request.reader.lower() in ("torch/image_folder", "torch/folder")
    if request.labels is not None and not in_files:
        raise DataError(f"labels of their own are for images in files: {request.reader} has labels")
    if prefix == "hfids":
        return HubSource(request.create().reader, **options)
    if prefix == "hfds":
        return ReaderSource(request.create(), **options)
    path = Path(request.root)
    if prefix == "wds":
        _check_shards(request.root)
        return ShardSource(request.create().reader, **options)
    _check_exists(path)
    if not in_files:
        return ReaderSource(request.create(), **options)
    if arrays := _arrays(path, request):
        return ArraySource(arrays, channels=channels, class_map=request.class_map, limit=options["limit"])
    if path.is_dir():
        path = _split(path, request)
    if not path.is_dir() and path.suffix != ".tar":
        raise DataError(f"{path} is neither a folder, nor a .tar, nor an .npz file")
    files = FolderFiles(path, channels) if path.is_dir() else TarFiles(path, channels)
    return _labelled(files, request, **options)


def _labelled(files: Files, request: _Request, **options: Any) -> FileSource:
    if not files.names:
        wanted = ", ".join(extensions(request.channels))
        raise DataError(f"{files.path} holds no image ({wanted})" + _but(without(files.left_out)))
    if request.labels is not None:
        classes = read_labels(request.labels, files.names, request.class_map if request.numbered else None)
    else:
        classes = _by_folder(files, request)
    known = request.class_map
    if known is None:
        names = sorted(set(classes), key=lambda name: (natural_key(name), name))
        known = {name: label for label, name in enumerate(names)}
    if unlisted := sorted(set(classes) - set(known)):
        raise DataError(foreign(request.labels or files.path, unlisted))
    return FileSource(files, classes, known, **options)


def _by_folder(files: Files, request: _Request) -> list[str]:
    """The class of each image: the first folder of its path.

    Raises DataError for images outside of class folders, and for a class folder without a single image, whose class
    would be missing and the others renumbered.
    """
    stray = [name for name in files.names if "/" not in name]
    inside = next((name for name in files.names if "/" in name), None)
    if stray and inside is not None:
        raise DataError(
            f"{files.path}/{stray[0]} lies beside class folders (with {files.path}/{inside} in one of them)"
            + (f", and so do {len(stray) - 1} other images" if len(stray) > 1 else "")
            + ". Expected every image in the folder of its class"
        )
    if stray:
        raise DataError(
            f"{files.path} holds {len(stray)} images, such as {files.path}/{stray[0]}, and no class folders. "
            f"Expected {files.path}/CLASS/{stray[0]}, or a file of the images' classes (data.val_labels)"
        )
    classes = [shown(name.partition("/")[0]) for name in files.names]
    if os.path.isdir(files.path):
        used = set(classes)
        for entry in sorted(Path(files.path).iterdir()):
            if entry.is_dir() and not hidden(entry.name) and shown(entry.name) not in used:
                there = FolderFiles(entry, request.channels).left_out
                raise DataError(f"the class folder {entry} holds no image" + _but(without(there)))
    return classes


def _but(note: str) -> str:
    return f"; {note}" if note else ""


def _classes(
    class_map: str | Mapping[str, int] | None, root: str | os.PathLike[str]
) -> Mapping[str, int] | None:
    if class_map is None:
        return None
    found = class_map if isinstance(class_map, Mapping) else read_classes(_list(class_map, root))
    return {shown(name): label for name, label in found.items()}


def _list(file: str, root: str | os.PathLike[str]) -> Path:
    """A file that is named from here, or from the root of the data."""
    path = Path(file)
    if path.exists() or not (Path(root) / file).exists():
        return path
    return Path(root) / file


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    siblings = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), siblings, n=20, cutoff=0)
    raise DataError(unknown("data", str(path), near) if near else f"there is no {path}")


def _check_shards(root: str) -> None:
    if "://" in root:
        return
    _check_exists(Path(root))
    if not any((Path(root) / info).is_file() for info in ("_info.json", "info.json")):
        raise DataError(
            f"{root} has no _info.json. Expected one with, for every split, its name, num_samples, filenames and "
            'shard_lengths: {"splits": {"train": {"name": "train", "num_samples": 20, "filenames": ["train-0.tar", '
            '"train-1.tar"], "shard_lengths": [10, 10]}}}'
        )


def _arrays(path: Path, request: _Request) -> Path | None:
    """The npz file of a split, None if there is none at all. Raises DataError if there are only other splits'."""
    if path.suffix == ".npz":
        return path
    there = sorted(path.glob("[!.]*.npz")) if path.is_dir() else []
    splits = {file.stem.rpartition("_")[2]: file for file in there}
    for name in _synonyms(request.split):
        if name in splits:
            return splits[name]
    if there:
        raise MissingSplit(f"{path}: " + unknown("split", request.split, splits))
    return None


def _synonyms(split: str) -> list[str]:
    return [split, *(name for names in SYNONYMS if split in names for name in names)]


def _split(root: Path, request: _Request) -> Path:
    """The split's folder, or its tar file, below `root`, or `root` itself."""
    if not request.split:
        return root
    for name in _synonyms(request.split):
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return path
    entries = [path for path in root.iterdir() if not hidden(path.name)]
    there = {path.name.removesuffix(".tar") for path in entries if path.is_dir() or path.suffix == ".tar"}
    if request.or_root and not there & set(chain(*SYNONYMS)):
        return root
    if not there:
        raise MissingSplit(f"there is no folder {request.split!r} in {root}.")
    raise MissingSplit(f"{root}: " + unknown("split", request.split, map(shown, there)))
