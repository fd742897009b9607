"""Opens images with labels: finds what there is, has timm read it, and says clearly what is missing."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm.data import create_dataset, get_img_extensions, set_img_extensions
from timm.data.readers.class_map import load_class_map

from ..errors import unknown
from .decode import MAX_PIXELS, MODES, endings
from .source import ArraySource, ImageSource, ReaderSource, foreign
from .stream import HubSource, ShardSource
from .types import DataError

_READERS = ("", "hfds", "hfids", "torch", "wds")

#: Names of timm's for the same split.
_SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"), ("test", "testing"))


def open_dataset(
    root: str | os.PathLike[str],
    *,
    split: str,
    name: str = "",
    channels: int = 3,
    training: bool = False,
    class_map: str | Mapping[str, int] | None = None,
    limit: int | None = None,
    num_samples: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImageSource:
    """Open the images of a split.

    root: a folder, a tar file, an npz file, or what the reader named by `name` wants; for Hugging Face's, the folder in
        which they keep what they download.
    split: the split's folder or tar file below `root` (or a synonym of timm's, such as val for validation), the part of
        an npz file's name behind the last `_`, or the reader's own name for it. "": `root` itself.
    name: timm's reader: "" for folders and tar files, or "wds/", "hfds/NAME", "hfids/NAME", "torch/NAME". Folders that
        hold npz files are read as those.
    channels: of the images; 1, 3 and 4 are read from any picture, other numbers from uint8 .npy files (H, W, C) in
        class folders, tar files or shards, or npz arrays.
    class_map: class name -> label, or a file of the names in their order. Classes that it does not name are an error.
    limit: the first so many images only. num_samples: images of an epoch, for a stream that does not say it.
    max_pixels: of a picture; larger ones are broken.

    Raises DataError where there is nothing to read, and says what there is.
    """
    prefix, _, rest = name.partition("/")
    prefix = prefix.lower()
    if prefix not in _READERS:
        raise DataError(f"{name}: " + unknown("reader", prefix, filter(None, _READERS)))
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} images: expected at least 1")
    request = _Request(
        name=f"{prefix}/{rest}" if prefix else "",
        root=str(root),
        split=split,
        channels=channels,
        training=training,
        class_map=_classes(class_map, root),
        num_samples=num_samples,
    )
    try:
        return _open(request, prefix, limit=limit, max_pixels=max_pixels)
    except PermissionError as error:
        raise DataError(f"cannot read {error.filename or root}: {error.strerror}") from error


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is asked of timm, in our terms; see `open_dataset`."""

    name: str
    root: str
    split: str
    channels: int
    training: bool
    class_map: Mapping[str, int] | None
    num_samples: int | None

    def create(self, **options: Any) -> Any:
        """timm's dataset. Raises DataError for what timm cannot open."""
        try:
            with _endings(endings(self.channels)):
                return create_dataset(
                    self.name,
                    root=self.root or None,
                    split=self.split,
                    search_split=False,
                    is_training=self.training,
                    class_map=self.class_map,  # pyright: ignore
                    num_samples=self.num_samples,
                    **options,
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
                f"timm cannot read {self.name or 'the images'} ({self.split}) from {self.root}: {error}"
            ) from error


def _open(request: _Request, prefix: str, **options: Any) -> ImageSource:
    """options: limit, max_pixels."""
    options["channels"] = channels = request.channels
    if channels not in MODES and prefix in ("hfds", "hfids", "torch"):
        raise DataError(f"{request.name} has pictures, of 1, 3 or 4 channels: in_chans is {channels}")
    if prefix == "hfids":
        return HubSource(request.create().reader, **options)
    if prefix == "hfds":
        return ReaderSource(request.create(), **options)
    path = Path(request.root)
    if prefix == "wds":
        _check_shards(request.root)
        return ShardSource(request.create().reader, **options)
    _check_exists(path)
    if prefix == "torch":
        if request.name.endswith("folder"):
            path = _split(path, request.split)
        return ReaderSource(_at(request, path).create(), **options)
    if arrays := _arrays(path, request.split):
        return ArraySource(arrays, channels=channels, class_map=request.class_map, limit=options["limit"])
    if path.is_dir():
        path = _split(path, request.split)
    request = _at(request, path)
    if path.is_dir():
        _check_folders(path, request)
        return ReaderSource(request.create(), **options)
    if path.suffix != ".tar":
        raise DataError(f"{path} is neither a folder, nor a .tar, nor an .npz file")
    # Open tar files have one position, which forked loader processes would share.
    return ReaderSource(request.create(cache_tarfiles=False), **options)


def _at(request: _Request, path: Path) -> _Request:
    return replace(request, root=str(path))


@contextmanager
def _endings(wanted: tuple[str, ...]) -> Iterator[None]:
    """Have timm look for these files: by itself it leaves out .webp, .bmp, .tif and others."""
    before = get_img_extensions()
    set_img_extensions(wanted)
    try:
        yield
    finally:
        set_img_extensions(before)


def _classes(
    class_map: str | Mapping[str, int] | None, root: str | os.PathLike[str]
) -> Mapping[str, int] | None:
    if class_map is None or isinstance(class_map, Mapping):
        return class_map
    try:
        return load_class_map(class_map, str(root))
    except (AssertionError, OSError, ValueError) as error:
        raise DataError(f"cannot read the class map {class_map}: {error}") from error


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


def _arrays(path: Path, split: str) -> Path | None:
    """The npz file of a split, None if there is none at all. Raises DataError if there are only other splits'."""
    if path.suffix == ".npz":
        return path
    there = sorted(path.glob("*.npz")) if path.is_dir() else []
    splits = {file.stem.rpartition("_")[2]: file for file in there}
    for name in _synonyms(split):
        if name in splits:
            return splits[name]
    if there:
        raise DataError(f"{path}: " + unknown("split", split, splits))
    return None


def _synonyms(split: str) -> list[str]:
    return [split, *(name for names in _SYNONYMS if split in names for name in names)]


def _split(root: Path, split: str) -> Path:
    """The split's folder, or its tar file, below `root`."""
    if not split:
        return root
    for name in _synonyms(split):
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return path
    there = sorted(p.name.removesuffix(".tar") for p in root.iterdir() if p.is_dir() or p.suffix == ".tar")[
        :20
    ]
    raise DataError(
        f"{root}: " + (unknown("split", split, there) if there else f"there is no folder {split!r} in it")
    )


def _check_folders(folder: Path, request: _Request) -> None:
    """Raise DataError for a class folder without a single image, whose class would be missing and the others
    renumbered, and for classes that the class map does not name, whose images timm would leave out."""
    types = endings(request.channels)
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith(".") and not any(_holders(entry, types)):
            raise DataError(f"the class folder {entry} holds no image ({', '.join(types)})")
    if request.class_map is not None:
        found = {os.path.basename(holder) for holder in _holders(folder, types) if holder != str(folder)}
        if strangers := sorted(found - set(request.class_map)):
            raise DataError(foreign(folder, strangers))


def _holders(folder: Path, types: tuple[str, ...]) -> Iterator[str]:
    """The folders, this one and those below it, that hold files of these types."""
    for holder, _, files in os.walk(folder, followlinks=True):
        if any(file.lower().endswith(types) for file in files):
            yield holder
