"""Where images come from: whatever timm reads, and npz arrays."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.img_extensions import get_img_extensions
from torch import Tensor

from ..errors import unknown
from .decode import MAX_PIXELS, BrokenImage, open_image
from .types import DataError

#: An image before its transform: a picture, or (C, H, W) uint8 where there are not 1, 3 or 4 channels.
Raw = Image.Image | Tensor

#: Names of timm's for the same split.
_SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"), ("test", "testing"))


class ImageSource(ABC):
    """Images with labels.

    class_names: of every label, where the data say them. num_classes: one more than the largest label there can be.
    """

    class_names: list[str] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def num_classes(self) -> int: ...

    def check_classes(self, num_classes: int) -> None:
        """Raise DataError if there are labels beyond a network's classes."""
        if self.num_classes > num_classes:
            raise DataError(
                f"the data have {self.num_classes} classes, the network {num_classes}: expected model.num_classes "
                f"{self.num_classes}, or other data"
            )


class IndexedSource(ImageSource):
    """Images that can be read in any order."""

    @abstractmethod
    def image(self, index: int) -> tuple[Raw, int]:
        """Image and label. Raises BrokenImage."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call the image when it is broken."""


class ArraySource(IndexedSource):
    """The arrays of an npz file, held in memory as (N, H, W[, C]) uint8.

    The file holds `labels` and either `images`, or `jpeg` and `offsets`: encoded pictures of one size, one after the
    other, which are decoded here. `classes`, if there, are the names.
    """

    def __init__(self, path: Path, *, channels: int, limit: int | None = None):
        try:
            with np.load(path, allow_pickle=False) as file:
                self._labels = file["labels"][:limit].astype(np.int64).tolist()
                if "images" in file:
                    self._images = file["images"][: len(self._labels)]
                else:
                    content, ends = file["jpeg"].tobytes(), file["offsets"].tolist()
                    pictures = (content[ends[i] : ends[i + 1]] for i in range(len(self._labels)))
                    self._images = np.stack(
                        [np.asarray(open_image(io.BytesIO(p), channels)) for p in pictures]
                    )
                if "classes" in file:
                    self.class_names = [str(name) for name in file["classes"]]
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"cannot read {path}: {error}. Expected an npz file with `labels` and `images`, or `jpeg` and `offsets`"
            ) from error
        found = 1 if self._images.ndim == 3 else self._images.shape[3]
        if found != channels or self._images.dtype != np.uint8:
            raise DataError(
                f"{path} holds {self._images.dtype} images of {found} channels: expected uint8 of {channels} (in_chans)"
            )
        self._path, self._pictures = path, channels in (1, 3, 4)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names) if self.class_names else max(self._labels) + 1

    def image(self, index: int) -> tuple[Raw, int]:
        pixels = self._images[index]
        if self._pictures:
            return Image.fromarray(pixels.squeeze()), self._labels[index]
        return torch.from_numpy(pixels).permute(2, 0, 1), self._labels[index]

    def name(self, index: int) -> str:
        return f"{self._path.name}[{index}]"


class ReaderSource(IndexedSource):
    """What timm reads by index: folders, tar files, torchvision's and Hugging Face's datasets."""

    def __init__(self, dataset: Any, *, channels: int, limit: int | None, max_pixels: int):
        self._reader = getattr(dataset, "reader", dataset)
        self._channels, self._max_pixels = channels, max_pixels
        self._length = min(len(self._reader), limit or len(self._reader))
        found = getattr(self._reader, "class_to_idx", None) or {}
        self._classes = max(found.values()) + 1 if found else 0
        if sorted(found.values()) == list(range(len(found))):
            self.class_names = sorted(found, key=found.get) or None  # pyright: ignore

    def __len__(self) -> int:
        return self._length

    @property
    def num_classes(self) -> int:
        if not self._classes:  # a reader without names: count
            self._classes = 1 + max(int(self._reader[i][1]) for i in range(self._length))
        return self._classes

    def image(self, index: int) -> tuple[Raw, int]:
        try:
            file, label = self._reader[index][:2]
            if self._channels in (1, 3, 4):
                return open_image(file, self._channels, self._max_pixels), int(label)
            pixels = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BrokenImage(getattr(error, "strerror", None) or str(error)) from error
        if pixels.ndim != 3 or pixels.shape[2] != self._channels or pixels.dtype != np.uint8:
            raise BrokenImage(f"{pixels.dtype} {pixels.shape}: expected uint8 (H, W, {self._channels})")
        return torch.from_numpy(pixels).permute(2, 0, 1), int(label)

    def name(self, index: int) -> str:
        try:
            return self._reader.filename(index)
        except (AssertionError, AttributeError, NotImplementedError):
            return f"image {index}"


class StreamSource(ImageSource):
    """What timm reads in one direction only: WebDataset shards, Hugging Face's streams. Already decoded by the reader,
    which shares the shards among ranks and loader processes, and skips and logs what it cannot decode."""

    def __init__(self, dataset: Any, *, num_samples: int | None, class_names: Sequence[str] | None = None):
        self.dataset = dataset
        self._length = num_samples if num_samples is not None else len(dataset)
        self.class_names = list(class_names) if class_names else None
        if self._length == 0:
            raise DataError("nobody knows how many images the stream has: set data.num_samples")

    def __len__(self) -> int:
        return self._length

    @property
    def num_classes(self) -> int:
        """Known only where the classes are named; 0 otherwise, so that any network passes."""
        return len(self.class_names or ())

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return iter(self.dataset.reader)


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
    seed: int = 0,
    batch_size: int = 1,
) -> ImageSource:
    """Open the images of a split.

    root: a folder, a tar file, an npz file, or what the reader named by `name` wants.
    split: the split's folder below `root` (or a synonym of timm's, such as val for validation), the part of an npz
        file's name behind the last `_`, or the reader's own name for it. "": `root` itself.
    name: timm's reader: "" for folders and tar files, or "wds/", "hfds/NAME", "hfids/NAME", "torch/NAME". Folders that
        hold npz files are read as those.
    channels: of the images; 1, 3 and 4 are read from any picture, other numbers from uint8 .npy files (H, W, C) in
        class folders, or npz arrays.
    class_map: class name -> label, or a file of the names in their order. Folders that it does not name are an error.
    limit: the first so many images only. num_samples: the length of a stream that does not say it.

    Raises DataError where there is nothing to read, and says what there is.
    """
    path = Path(root)
    prefix = name.partition("/")[0].lower() if "/" in name else name
    if prefix in ("hfds", "hfids", "torch"):
        return _timm(
            name, root, split, channels, training, class_map, limit, num_samples, max_pixels, seed, batch_size
        )
    if not path.exists():
        siblings = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(unknown("data", str(root), siblings) if siblings else f"there is no {root}")
    try:
        if prefix == "wds":
            if not any((path / info).is_file() for info in ("_info.json", "info.json")):
                raise DataError(
                    f"{path} has no _info.json, which names the shards of every split and their lengths"
                )
        elif arrays := _arrays(path, split):
            source = ArraySource(arrays, channels=channels, limit=limit)
            return source
        elif path.is_dir():
            path = _split_folder(path, split)
            _check_folders(path, channels)
        source = _timm(
            name, path, split, channels, training, class_map, limit, num_samples, max_pixels, seed, batch_size
        )
    except PermissionError as error:
        raise DataError(f"cannot read {error.filename or root}: {error.strerror}") from error
    if isinstance(class_map, Mapping) and path.is_dir() and prefix == "":
        strangers = sorted({p.name for p in path.iterdir() if p.is_dir()} - set(class_map))
        if strangers:
            raise DataError(
                f"{path} has classes that the training images have not: {', '.join(strangers[:10])}"
            )
    return source


def _timm(
    name: str,
    root: Any,
    split: str,
    channels: int,
    training: bool,
    class_map: Any,
    limit: int | None,
    num_samples: int | None,
    max_pixels: int,
    seed: int,
    batch_size: int,
) -> ImageSource:
    extra = {} if channels in (1, 3, 4) else {"input_key": ".npy"}
    try:
        dataset = create_dataset(
            name,
            root=str(root),
            split=split,
            search_split=False,
            is_training=training,
            class_map=class_map,  # pyright: ignore
            batch_size=batch_size,
            num_samples=num_samples,
            seed=seed,
            input_img_mode={1: "L", 3: "RGB", 4: "RGBA"}.get(channels, "RGB"),
            **extra,  # pyright: ignore
        )
    except (AssertionError, ImportError, KeyError, RuntimeError) as error:
        raise DataError(f"timm cannot read {name or 'the images'} from {root}: {error}") from error
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return StreamSource(dataset, num_samples=num_samples)
    return ReaderSource(dataset, channels=channels, limit=limit, max_pixels=max_pixels)


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


def _split_folder(root: Path, split: str) -> Path:
    if not split:
        return root
    for name in _synonyms(split):
        if (root / name).is_dir():
            return root / name
    there = sorted(p.name for p in root.iterdir() if p.is_dir())
    raise DataError(
        f"{root}: "
        + (unknown("split", split, there[:20]) if there else f"there is no folder {split!r} in it")
    )


def _check_folders(folder: Path, channels: int) -> None:
    """Raise DataError for a class folder without a single image: its class would be missing, the others renumbered."""
    types = set(get_img_extensions(as_set=True)) if channels in (1, 3, 4) else {".npy"}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not _holds(entry, types):
            raise DataError(f"the class folder {entry} holds no image ({', '.join(sorted(types))})")


def _holds(folder: Path, types: set[str]) -> bool:
    """Whether there is a file of these types in the folder or below it. Looks no further than the first."""
    return any(
        os.path.splitext(file)[1].lower() in types
        for _, _, files in os.walk(folder, followlinks=True)
        for file in files
    )
