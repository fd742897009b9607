"""Where images come from: whatever timm reads, and npz arrays."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset

from ..errors import unknown
from .decode import MAX_PIXELS, open_image
from .types import DataError


class ImageSource:
    """Images with labels by index."""

    class_names: list[str] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, index: int) -> tuple[Image.Image, int]:
        """Picture and label. Raises BrokenImage."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        raise NotImplementedError

    def check_classes(self, num_classes: int) -> None:
        """Raise DataError if there are labels beyond a network's classes."""
        if self.num_classes > num_classes:
            raise DataError(
                f"the data have {self.num_classes} classes, the network {num_classes}: set model.num_classes"
            )


class ArraySource(ImageSource):
    """The arrays of an npz file: `jpeg`, `offsets` (encoded images in a row) or `images` (N, H, W[, C]); `labels`."""

    def __init__(self, path: Path, *, channels: int, limit: int | None):
        with np.load(path, allow_pickle=False) as file:
            labels = file["labels"][:limit].astype(np.int64)
            if "images" in file:
                self._images = file["images"][:limit]
            else:
                bytes_, offsets = file["jpeg"].tobytes(), file["offsets"]
                self._images = np.stack(
                    [
                        np.asarray(open_image(io.BytesIO(bytes_[offsets[i] : offsets[i + 1]]), channels))
                        for i in range(len(labels))
                    ]
                )
        self._path, self._labels = path, labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._images[index]), self._labels[index]

    def name(self, index: int) -> str:
        return f"{self._path.name}[{index}]"

    @property
    def num_classes(self) -> int:
        return max(self._labels) + 1


class ReaderSource(ImageSource):
    """A map-style dataset of timm: folders, tar files, torchvision's and Hugging Face's datasets."""

    def __init__(self, dataset: Any, *, channels: int, limit: int | None, max_pixels: int):
        self._reader, self._channels, self._max_pixels = dataset.reader, channels, max_pixels
        self._length = min(len(self._reader), limit or len(self._reader))
        indices = getattr(self._reader, "class_to_idx", None) or {}
        self.class_names = [name for name, _ in sorted(indices.items(), key=lambda item: item[1])] or None

    def __len__(self) -> int:
        return self._length

    def image(self, index: int) -> tuple[Image.Image, int]:
        file, label = self._reader[index][:2]
        return open_image(file, self._channels, self._max_pixels), label

    def name(self, index: int) -> str:
        return self._reader.filename(index)

    @property
    def num_classes(self) -> int:
        return len(self.class_names or ())


def open_dataset(
    root: str | Path,
    *,
    split: str,
    name: str = "",
    channels: int = 3,
    training: bool = False,
    class_map: str | None = None,
    limit: int | None = None,
    num_samples: int | None = None,
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
    batch_size: int = 1,
) -> ImageSource:
    """Open the images of a split. Raises DataError."""
    folder = Path(root)
    if not folder.exists():
        siblings = [str(p) for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise DataError(unknown("data folder", str(root), siblings))
    arrays = sorted(folder.glob(f"*_{split}.npz"))
    if arrays:
        source = ArraySource(arrays[0], channels=channels, limit=limit)
        manifest = folder / "manifest.json"
        if manifest.is_file():
            source.class_names = json.loads(manifest.read_text()).get("classes")
        return source
    dataset = create_dataset(name, root=str(root), split=split, is_training=training, class_map=class_map)  # pyright: ignore
    return ReaderSource(dataset, channels=channels, limit=limit, max_pixels=max_pixels)
