"""From a file to a picture with the channels the network wants, whatever was in the file."""

from __future__ import annotations

import struct
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: Pixels above which a picture is taken for an attack or a mistake: Pillow's own limit for an error.
MAX_PIXELS = 178_956_970

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class BrokenImage(ValueError):
    """A file that is no readable picture; the message says why."""


def open_image(file: Any, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file (path or binary stream): upright, with 1 (grey), 3 (RGB) or 4 (RGBA) channels of 8 bits.

    Palettes and CMYK are converted, 16-bit values scaled to 8 bits, transparency dropped where it is not asked for, and
    the camera's rotation (EXIF) is applied.

    Raises BrokenImage for what is empty, truncated, no picture, unreadable, or of more than `max_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
            width, height = image.size
            if width * height > max_pixels:
                raise BrokenImage(f"{width} x {height} pixels, more than {max_pixels}")
            image.load()
            image = ImageOps.exif_transpose(image)
        return _convert(image, _MODES[channels])
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage("empty, or not an image") from error
    except Image.DecompressionBombError as error:
        raise BrokenImage(str(error)) from error
    # What Pillow's decoders raise over bytes that make no sense.
    except (OSError, EOFError, IndexError, OverflowError, SyntaxError, ValueError, struct.error) as error:
        raise BrokenImage(getattr(error, "strerror", None) or str(error)) from error


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 8 bits. Pillow's own conversion would cut off what is above 255.

    The largest value that a 32-bit picture means is nowhere written: 1 (floating point), 255 or 65535, whichever holds
    all of its values.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    most = values.max(initial=0)
    if image.mode.startswith("I;16") or most > 255:
        top = 65535.0
    else:
        top = 1.0 if image.mode == "F" and most <= 1 else 255.0
    return Image.fromarray((values / top * 255 + 0.5).clip(0, 255).astype(np.uint8))
