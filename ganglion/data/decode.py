"""From a file to an image with the channels that the network wants, whatever was in the file."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

#: An image before its transform: a picture, or (C, H, W) uint8 where there are not 1, 3 or 4 channels.
Raw = Image.Image | Tensor

#: Pixels above which a picture is taken for an attack or a mistake: Pillow's own limit for an error.
MAX_PIXELS = 178_956_970

#: Pillow's modes for the numbers of channels that pictures have.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class BrokenImage(ValueError):
    """A file that is no readable picture; the message says why."""


def read_image(file: Any, channels: int, max_pixels: int = MAX_PIXELS) -> Raw:
    """The image in a binary stream: by `open_image`, or, where pictures have not so many channels, an .npy array
    (H, W, C) of uint8, returned as (C, H, W).

    Raises BrokenImage.
    """
    if channels in MODES:
        return open_image(file, channels, max_pixels)
    try:
        pixels = np.load(io.BytesIO(file.read()), allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise BrokenImage(reason(error)) from error
    if pixels.ndim != 3 or pixels.shape[2] != channels or pixels.dtype != np.uint8:
        raise BrokenImage(f"{pixels.dtype} {pixels.shape}: expected uint8 (H, W, {channels})")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def open_image(file: Any, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file (path, binary stream, or what Pillow has opened): upright, with 1 (grey), 3 (RGB) or 4
    (RGBA) channels of 8 bits.

    Palettes and CMYK are converted, 16-bit values scaled to 8 bits, transparency dropped where it is not asked for, and
    the camera's rotation (EXIF) is applied.

    Raises BrokenImage for what is empty, truncated, no picture, unreadable, or of more than `max_pixels`.
    """
    mode = MODES[channels]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large pictures and of damaged EXIF data
            image = file if isinstance(file, Image.Image) else Image.open(file)
            width, height = image.size
            if width * height > max_pixels:
                raise BrokenImage(f"{width} x {height} pixels, more than {max_pixels}")
            image.load()
            return _convert(_upright(image), mode)
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage("empty, or not an image") from error
    # Over bytes that make no sense the decoders raise whatever they stumble on: SyntaxError, struct.error, IndexError,
    # RuntimeError, ... One file must not end a run, and the reason is reported.
    except Exception as error:
        raise BrokenImage(reason(error)) from error


def endings(channels: int) -> tuple[str, ...]:
    """Of the names of files that hold images of so many channels."""
    return IMG_EXTENSIONS if channels in MODES else (".npy",)


def blank(channels: int) -> Raw:
    """An image of zeros, for its shape after a transform."""
    return Image.new(MODES[channels], (64, 64)) if channels in MODES else torch.zeros(channels, 64, 64).byte()


def reason(error: Exception) -> str:
    """What an error says, without the path: reports name the image themselves."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data: the pixels are good, and nobody knows of a rotation
        return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 8 bits. Pillow's own conversion would cut off what is above 255.

    The largest value that a 32-bit picture means is nowhere written: 1 (floating point), 255 or 65535, the first that
    holds all of its values, or else the largest of them.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0, posinf=0, neginf=0)
    most = float(values.max(initial=0))
    tops = (65535.0,) if image.mode.startswith("I;16") else (255.0, 65535.0)
    if image.mode == "F":
        tops = (1.0, *tops)
    top = next((top for top in tops if most <= top), most)
    return Image.fromarray((values / top * 255 + 0.5).clip(0, 255).astype(np.uint8))
