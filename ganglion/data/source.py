"""Where labelled images come from: what can be read in any order."""

from __future__ import annotations

import functools
import io
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import shown
from .decode import MAX_PIXELS, MODES, Raw, UnreadableImage, open_image, read_image, reason
from .files import Files, without
from .types import DataError


class ImageSource(ABC):
    """Images with targets, such as labels.

    channels: of the images. class_names: of every label, where the data say them. num_classes: one more than the
    largest label there can be, 0 where it is unknown. note: what a user should know about what was found, "" if
    nothing.
    """

    channels: int
    class_names: list[str] | None = None
    note: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def num_classes(self) -> int:
        return len(self.class_names or ())

    def labels(self) -> list[int]:
        """The label of every image, without reading images. Raises DataError where only reading would tell."""
        raise DataError("the labels of these images are unknown before all of them have been read")

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
    def image(self, index: int) -> tuple[Raw, Any]:
        """Image and target; of the sources here a label. Raises UnreadableImage."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call the image, fit to be printed."""


class FileSource(IndexedSource):
    """Images in files.

    classes: the class name of each. class_to_idx: their numbers. limit: the first N images only.
    """

    def __init__(
        self,
        files: Files,
        classes: Sequence[str],
        class_to_idx: Mapping[str, int],
        *,
        channels: int,
        limit: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        self._files = files
        self.channels: int = channels
        self._max_pixels = max_pixels
        self._labels = [class_to_idx[name] for name in classes[:limit]]
        self._classes = 1 + max(class_to_idx.values())
        self.class_names: list[str] | None = names_of(class_to_idx)
        self.note: str = without(files.left_out)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def num_classes(self) -> int:
        return self._classes

    def image(self, index: int) -> tuple[Raw, int]:
        try:
            file = self._files.open(index)
        except OSError as error:
            raise UnreadableImage(reason(error)) from error
        return read_image(file, self.channels, self._max_pixels), self._labels[index]

    def labels(self) -> list[int]:
        return self._labels

    def name(self, index: int) -> str:
        return shown(self._files.names[index])


class ArraySource(IndexedSource):
    """The arrays of an npz file, held in memory as (N, H, W[, C]) uint8.

    The file holds `labels` and either `images`, or `jpeg` and `offsets`: encoded images of one size, one after the
    other, which are decoded here, and where each begins and the last one ends. `classes`, if there, are the names; a
    class_map of names renumbers them.

    Raises DataError for a file that is none of this.
    """

    def __init__(
        self,
        path: Path,
        *,
        channels: int,
        class_map: Mapping[str, int] | None = None,
        limit: int | None = None,
    ):
        self.channels: int = channels
        self._path = path
        self._unreadable: dict[int, str] = {}
        try:
            with np.load(path, allow_pickle=False) as file:
                labels = file["labels"][:limit]
                if "images" in file:
                    self._images = file["images"][:limit]
                else:
                    self._images = self._decode(
                        file["jpeg"].tobytes(), file["offsets"][: len(labels) + 1].tolist()
                    )
                if "classes" in file:
                    self.class_names = [str(name) for name in file["classes"]]
        except PermissionError:
            raise
        except (
            Exception
        ) as error:  # damaged archives raise BadZipFile, zlib.error, struct.error, KeyError, ...
            raise DataError(
                f"cannot read {path}: {error}. Expected an npz file with `labels` and `images`, or `jpeg` and `offsets`"
            ) from error
        self._check(labels)
        self._labels = labels.astype(np.int64).tolist()
        if self.class_names and class_map:
            self._renumber(class_map)

    def _decode(self, content: bytes, offsets: list[int]) -> np.ndarray:
        """(N, H, W[, C]) from N encoded images between N + 1 offsets; an unreadable one is noted, and becomes zeros."""
        images: list[np.ndarray | None] = []
        for index, (start, end) in enumerate(pairwise(offsets)):
            try:
                image = np.asarray(open_image(io.BytesIO(content[start:end]), self.channels))
            except UnreadableImage as error:
                self._unreadable[index], image = str(error), None
            images.append(image)
        zeros = np.zeros_like(next((p for p in images if p is not None), np.uint8(0)))
        return np.stack([zeros if image is None else image for image in images])

    def _check(self, labels: np.ndarray) -> None:
        found = self._images.shape[3] if self._images.ndim == 4 else 1
        if found != self.channels or self._images.ndim < 3 or self._images.dtype != np.uint8:
            raise DataError(
                f"{self._path} holds {self._images.dtype} images {self._images.shape}: expected uint8 of "
                f"{self.channels} channels (in_chans)"
            )
        if labels.shape != (len(self._images),) or labels.dtype.kind not in "iu":
            raise DataError(
                f"{self._path} holds {len(self._images)} images and {labels.dtype} labels {labels.shape}: expected a "
                "whole number for each image"
            )
        if not len(labels) or labels.min() < 0:
            raise DataError(f"{self._path}: expected images, and labels from 0 on")
        if self.class_names and labels.max() >= len(self.class_names):
            raise DataError(
                f"{self._path} names {len(self.class_names)} classes and has the label {labels.max()}"
            )

    def _renumber(self, class_map: Mapping[str, int]) -> None:
        assert self.class_names is not None
        names = [self.class_names[label] for label in self._labels]
        if unlisted := sorted(set(names) - set(class_map)):
            raise DataError(foreign(self._path, unlisted))
        self._labels = [class_map[name] for name in names]
        self.class_names = names_of(class_map)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names) if self.class_names else max(self._labels) + 1

    def image(self, index: int) -> tuple[Raw, int]:
        if index in self._unreadable:
            raise UnreadableImage(self._unreadable[index])
        pixels, label = self._images[index], self._labels[index]
        if self.channels not in MODES:
            return torch.from_numpy(pixels).permute(2, 0, 1), label
        if pixels.ndim == 3 and self.channels == 1:
            pixels = pixels[..., 0]
        return Image.fromarray(pixels), label

    def labels(self) -> list[int]:
        return self._labels

    def name(self, index: int) -> str:
        return shown(f"{self._path.name}[{index}]")


class ReaderSource(IndexedSource):
    """What timm reads by index: torchvision's and Hugging Face's datasets.

    dataset: timm's or torchvision's.
    """

    def __init__(
        self, dataset: Any, *, channels: int, limit: int | None = None, max_pixels: int = MAX_PIXELS
    ):
        self._reader = reader = getattr(dataset, "reader", dataset)
        self.channels: int = channels
        self._max_pixels = max_pixels
        self._length = len(reader) if limit is None else min(len(reader), limit)
        if hasattr(reader, "loader"):  # torchvision's folders: the file, to be decoded here
            reader.loader = functools.partial(open, mode="rb")
        found = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
        self._classes = max(found.values()) + 1 if found else 0
        self.class_names: list[str] | None = names_of(found)

    def __len__(self) -> int:
        return self._length

    @property
    def num_classes(self) -> int:
        if not self._classes:  # a reader without names
            self._classes = 1 + max(map(int, self._all_labels()))
        return self._classes

    def labels(self) -> list[int]:
        return [int(label) for label in islice(self._all_labels(), self._length)]

    def _all_labels(self) -> Iterable[Any]:
        reader = self._reader
        if hasattr(reader, "iter_targets"):  # timm's
            return reader.iter_targets()
        found = getattr(reader, "targets", None)  # torchvision's, most of them
        return found if found is not None else (item[1] for item in reader)

    def image(self, index: int) -> tuple[Raw, int]:
        try:
            file, label = self._reader[index][:2]
        except (OSError, ValueError, AssertionError, TypeError, tarfile.TarError) as error:
            # AssertionError and TypeError are timm's, over a table's row without an image.
            raise UnreadableImage(reason(error)) from error
        with file:
            return read_image(file, self.channels, self._max_pixels), int(label)

    def name(self, index: int) -> str:
        rows = hasattr(self._reader, "iter_targets")  # of a table, which may hold no name, or one twice
        try:
            name = self._reader.filename(index)
        except (AssertionError, AttributeError, NotImplementedError):
            return f"image {index}"
        return shown((f"row {index} ({name})" if name else f"row {index}") if rows else name)


def names_of(class_to_idx: Mapping[Any, int]) -> list[str] | None:
    """The names in the order of their labels; None unless each label from 0 on has one."""
    if not class_to_idx or sorted(class_to_idx.values()) != list(range(len(class_to_idx))):
        return None
    return [shown(name) for name in sorted(class_to_idx, key=class_to_idx.__getitem__)]


def foreign(path: object, names: list[str]) -> str:
    """Message for classes that a class map does not have."""
    few = ", ".join(map(shown, names[:10])) + (", ..." if len(names) > 10 else "")
    return f"{path} has classes that are not among those known (of the class map, or of training): {few}"
