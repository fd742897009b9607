"""From a file to an image with the channels that the network wants, whatever was in the file."""

from __future__ import annotations

import errno
import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import shown

#: An image before its transform: Pillow's, or (C, H, W) uint8 where there are not 1, 3 or 4 channels.
Raw = Image.Image | Tensor

#: Pixels above which an image is taken for an attack or a mistake: Pillow's own limit for an error.
MAX_PIXELS = 178_956_970

#: Pillow's modes for the numbers of channels that its images have.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

#: Pillow's formats that are opened, and the extensions of files that are taken for such. Not among them: what runs
#: other programs (EPS), what has no pixels of its own (WMF), decoders in Python that a small file keeps busy (QOI).
FORMATS: dict[str, tuple[str, ...]] = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "DDS": (".dds",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "ICO": (".ico",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "PCX": (".pcx",),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}

_EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)

#: Side of the pieces in which a grey image is converted to 8 bits.
_TILE = 1024


class UnreadableImage(ValueError):
    """A file that is no readable image; the message says why."""


def read_image(file: Any, channels: int, max_pixels: int = MAX_PIXELS) -> Raw:
    """The image in a file (path or binary stream): by `open_image`, or, of channels that image files cannot have, an
    .npy array (H, W, C) of uint8, returned as (C, H, W).

    Raises UnreadableImage.
    """
    if channels in MODES:
        return open_image(file, channels, max_pixels)
    try:
        with _opened(file) as stream:
            pixels = np.load(io.BytesIO(stream.read()), allow_pickle=False)
    except Exception as error:  # what NumPy makes of a damaged header is as various as what decoders do
        raise UnreadableImage(reason(error)) from error
    if pixels.ndim != 3 or pixels.shape[2] != channels or pixels.dtype != np.uint8:
        raise UnreadableImage(f"{pixels.dtype} {pixels.shape}: expected uint8 (H, W, {channels})")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def open_image(file: Any, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in a file (path, binary stream, or what Pillow has opened): upright, with 1 (grey), 3 (RGB) or 4
    (RGBA) channels of 8 bits. Of several frames it is the first.

    Palettes and CMYK are converted, 16-bit values scaled to 8 bits, transparency dropped where it is not asked for, and
    the camera's rotation (EXIF) is applied.

    Raises UnreadableImage for what is empty, truncated, in none of the `FORMATS`, no regular file, or of more than
    `max_pixels`.
    """
    mode = MODES[channels]
    try:
        with warnings.catch_warnings(), _opened(file) as stream:
            warnings.simplefilter("ignore")  # Pillow's, of large images and of damaged EXIF data
            image = _identified(stream)
            width, height = image.size
            if width * height > max_pixels:
                raise UnreadableImage(f"{width} x {height} pixels, more than {max_pixels}")
            image.load()
            return _convert(_upright(image), mode)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("empty, or not an image") from error
    # Over bytes that make no sense the decoders raise whatever they stumble on: SyntaxError, struct.error, IndexError,
    # RuntimeError, ... One file must not end a run, and the reason is reported.
    except Exception as error:
        raise UnreadableImage(reason(error)) from error


def extensions(channels: int) -> tuple[str, ...]:
    """Of the names of files that hold images with this number of channels."""
    return _EXTENSIONS if channels in MODES else (".npy",)


def blank(channels: int) -> Raw:
    """An image of zeros, for its shape after a transform."""
    return Image.new(MODES[channels], (64, 64)) if channels in MODES else torch.zeros(channels, 64, 64).byte()


def reason(error: Exception) -> str:
    """What an error says, without the path: reports name the image themselves."""
    return shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to read it; anything else, such as a pipe, might keep us waiting for ever.

    Raises OSError.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  the caller's to close
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _opened(file: Any) -> AbstractContextManager[Any]:
    return open_regular(file) if isinstance(file, (str, os.PathLike)) else nullcontext(file)


def _identified(file: Any) -> Image.Image:
    if not isinstance(file, Image.Image):
        return Image.open(file, formats=tuple(FORMATS))
    # None: made in memory. MPO: what Pillow calls a JPEG of several images.
    if file.format is not None and file.format != "MPO" and file.format not in FORMATS:
        raise UnreadableImage(f"{file.format}: expected {', '.join(FORMATS)}")
    return file


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data: the pixels are good, and a rotation is unknown
        pass
    return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 8 bits. Pillow's own conversion would cut off what is above 255.

    The largest value that a 32-bit image means is nowhere written: 1 (floating point), 255 or 65535, the first that
    holds all of its values, or else the largest of them.
    """
    most = max((float(values.max()) for _, values in _tiles(image)), default=0.0)
    tops = (65535.0,) if image.mode.startswith("I;16") else (255.0, 65535.0)
    if image.mode == "F":
        tops = (1.0, *tops)
    top = next((top for top in tops if most <= top), most)
    grey = np.empty((image.height, image.width), np.uint8)
    for (left, upper, right, lower), values in _tiles(image):
        grey[upper:lower, left:right] = (values / top * 255 + 0.5).clip(0, 255)
    return Image.fromarray(grey)


def _tiles(image: Image.Image) -> Iterator[tuple[tuple[int, int, int, int], np.ndarray]]:
    """The values in float64, which would take eight bytes each, piece by piece; NaN counts as 0."""
    for upper in range(0, image.height, _TILE):
        for left in range(0, image.width, _TILE):
            box = (left, upper, min(left + _TILE, image.width), min(upper + _TILE, image.height))
            values = np.asarray(image.crop(box), dtype=np.float64)
            yield box, np.nan_to_num(values, nan=0, posinf=0, neginf=0)
