"""Images with label maps: a folder of images, and one of masks with the same names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import shown
from .decode import Raw, UnreadableImage, open_regular, read_image, reason
from .source import IndexedSource
from .types import DataError

#: The label of pixels that count nowhere.
IGNORED = 255

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy")
_MASKS = (".png", ".bmp", ".tif", ".tiff")
#: What the names of masks end with in Cityscapes, where those of images end with the first.
_CITYSCAPES = ("_leftImg8bit", "_gtFine_labelTrainIds")


class MaskSource(IndexedSource):
    """Images of a folder, each with a mask of the same name in another one, below subfolders too.

    A mask is an image of one channel, 8 or 16 bits, whose values are labels; a palette image, whose indices are; or,
    with `colours`, an image of colours, by a palette or not. A target is the label map, (H, W) int64, `IGNORED` where
    nothing counts.

    class_names: of the labels from 0 on. reduce_zero_label: 0 becomes `IGNORED`, 1 the first class, as ADE20K has it.
    colours: (r, g, b) of every class, in order; other colours are `IGNORED`. classes: only these, in this order; pixels
    of others are `IGNORED`.

    Raises DataError where a folder or all partners are missing, and for classes that are none. A mask that does not fit
    its image, or has a label that is no class, is a DataError that names it, when it is read.
    """

    def __init__(
        self,
        images: Path,
        masks: Path,
        *,
        class_names: Sequence[str],
        channels: int = 3,
        reduce_zero_label: bool = False,
        colours: Sequence[Sequence[int]] | None = None,
        classes: Sequence[str] | None = None,
        limit: int | None = None,
    ):
        self.channels: int = channels
        for folder, what in ((images, "images"), (masks, "masks")):
            if not folder.is_dir():
                raise DataError(f"there is no folder {folder}: expected the {what}")
        if not 0 < len(class_names) < IGNORED:
            raise DataError(
                f"{len(class_names)} classes: expected from 1 to {IGNORED - 1}, as {IGNORED} is no label"
            )
        if colours is not None and len(colours) != len(class_names):
            raise DataError(f"{len(colours)} colours for {len(class_names)} classes: expected one for each")
        pairs, note = _pairs(images, masks)
        self.note: str = note
        self._pairs, self._images = pairs[:limit], images
        self._reduce, self._colours = reduce_zero_label, colours
        self._known = list(class_names)
        wanted = list(class_names if classes is None else classes)
        unknown = [name for name in wanted if name not in self._known]
        if unknown or len(set(wanted)) != len(wanted):
            raise DataError(
                f"classes are {wanted}: expected some of {', '.join(map(shown, self._known))}, each once"
            )
        self.class_names: list[str] | None = wanted
        table = torch.full((256,), -1)
        table[IGNORED] = IGNORED
        for i, name in enumerate(self._known):
            table[i] = wanted.index(name) if name in wanted else IGNORED
        self._table = table

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        return shown(str(self._pairs[index][0].relative_to(self._images)))

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self._pairs[index][0]

    def image(self, index: int) -> tuple[Raw, Tensor]:
        file, mask = self._pairs[index]
        try:
            image = read_image(open_regular(file), self.channels)
            labels = self._labels(mask)
        except OSError as error:
            raise UnreadableImage(reason(error)) from error
        size = tuple(image.shape[-2:]) if isinstance(image, Tensor) else (image.height, image.width)
        if tuple(labels.shape) != size:
            raise DataError(
                f"{mask} has {labels.shape[1]} x {labels.shape[0]} pixels, its image {file} {size[1]} x {size[0]}: "
                "expected the same"
            )
        return image, labels

    def _labels(self, file: Path) -> Tensor:
        try:
            with Image.open(open_regular(file)) as image:
                # Transparency says nothing of labels; with colours, a palette is a way to write them.
                mode = {"LA": "L", "RGBA": "RGB", "P": "RGB" if self._colours is not None else "P"}
                values = np.array(image.convert(mode.get(image.mode, image.mode)))
        except OSError:
            raise
        except Exception as error:  # Pillow's decoders raise what they like
            raise UnreadableImage(f"mask {file}: {reason(error)}") from error
        if self._colours is not None and values.ndim == 3:
            return self._table[_of_colours(values, self._colours, file)]
        if values.ndim == 3:
            if not (values == values[..., :1]).all():
                raise DataError(
                    f"{file} is an image of colours: expected labels, or a file of classes with the colour of each"
                )
            values = values[..., 0]
        if values.dtype.kind not in "bui":
            raise DataError(f"{file} has values of {values.dtype}: expected whole numbers, the labels")
        labels = torch.from_numpy(values.astype(np.int64))
        if self._reduce:
            # 0 is nothing and 255 stays; all others are one less.
            labels = torch.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)
        inside = labels.clamp(0, len(self._table) - 1)
        found = torch.where(labels == inside, self._table[inside], -1)
        if (found < 0).any():
            wrong = labels[found < 0].unique()[:5].tolist()
            raise DataError(
                f"{file} holds the labels {wrong}{' (less one)' if self._reduce else ''}: expected 0 to "
                f"{len(self._known) - 1} for {len(self._known)} classes, or {IGNORED} for pixels without a label"
            )
        return found


def _of_colours(values: np.ndarray, colours: Sequence[Sequence[int]], file: Path) -> Tensor:
    key = values[..., :3].astype(np.int64) @ np.array([65536, 256, 1])
    labels = np.full(key.shape, IGNORED)
    for label, colour in enumerate(colours):
        labels[key == np.array(colour, np.int64) @ np.array([65536, 256, 1])] = label
    if (labels == IGNORED).all() and len(found := np.unique(key)) > 1:
        some = ", ".join(f"{k >> 16} {k >> 8 & 255} {k & 255}" for k in found[:4])
        raise DataError(
            f"{file} has the colours {some}, of which none is a class's: expected red, green, blue"
        )
    return torch.from_numpy(labels)


def _pairs(images: Path, masks: Path) -> tuple[list[tuple[Path, Path]], str]:
    """Images with their masks, in the order of their names, and what was left out."""
    there: dict[str, Path] = {}
    for path in sorted(masks.rglob("*")):
        if path.suffix.lower() in _MASKS:
            stem = _stem(path, masks, _CITYSCAPES[1])
            if stem in there:
                raise DataError(f"{there[stem]} and {path} are masks of one name: expected one for an image")
            there[stem] = path
    files = [path for path in sorted(images.rglob("*")) if path.suffix.lower() in _IMAGES]
    pairs = [
        (f, there[_stem(f, images, _CITYSCAPES[0])])
        for f in files
        if _stem(f, images, _CITYSCAPES[0]) in there
    ]
    if not files:
        raise DataError(f"no image in {images}: expected files such as a.jpg")
    if not pairs:
        example = files[0].relative_to(images).with_suffix(".png")
        raise DataError(
            f"none of the {len(files)} images in {images} has a mask in {masks}, which has {len(there)}: expected "
            f"{example} for {files[0].relative_to(images)}"
        )
    left_out = {
        "images without a mask": len(files) - len(pairs),
        "masks without an image": len(there) - len({mask for _, mask in pairs}),
    }
    return pairs, ", ".join(f"{count} {what}" for what, count in left_out.items() if count)


def _stem(path: Path, folder: Path, suffix: str) -> str:
    return str(path.relative_to(folder).with_suffix("")).removesuffix(suffix)
