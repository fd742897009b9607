"""Small data for the tests of this folder: pictures that tell which they are, folders, shards."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganglion.data import ImageTransform, open_image


def encode(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def picture(number: int, side: int = 8, channels: int = 3) -> Image.Image:
    """One whose pixels all are its number (below 256)."""
    return Image.new({1: "L", 3: "RGB", 4: "RGBA"}[channels], (side, side), (number,) * channels)


def number(image: torch.Tensor) -> int:
    """The number of a picture that `plain` transformed."""
    values = image.unique()
    assert len(values) == 1, "not one of ours"
    return int(values)


@ImageTransform
def plain(image: Image.Image | torch.Tensor) -> torch.Tensor:
    """A transform that changes nothing: values from 0 to 255."""
    if isinstance(image, torch.Tensor):
        return image.float()
    pixels = torch.from_numpy(np.array(image)).float()
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


@ImageTransform
def noisy(image: Image.Image | torch.Tensor) -> torch.Tensor:
    """A transform that draws from every generator that transforms draw from."""
    import random

    noise = random.random() + np.random.rand() + torch.rand(1)  # noqa: NPY002
    return plain(image) + noise


def write_folder(folder: Path, classes: Sequence[str] = ("ant", "bee"), each: int = 5) -> Path:
    """Pictures 0, 1, 2, ... in the order of the classes."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            picture(label * each + i).save(folder / name / f"{i}.png")
    return folder


def write_tar(folder: Path, target: Path, around: str = "") -> str:
    """What is below a folder, hidden or not, with `around` before each path."""
    with tarfile.open(target, "w") as tar:
        for file in sorted(folder.rglob("*")):
            tar.add(file, around + str(file.relative_to(folder)), recursive=False)
    return str(target)


def write_shards(
    folder: Path, splits: Mapping[str, Sequence[Sequence[bytes | tuple[str, bytes]]]], ending: str = "png"
) -> Path:
    """Shards of encoded images, a list for each; the label of the n-th image of a split is n modulo 4."""
    folder.mkdir(parents=True, exist_ok=True)
    info: dict = {"splits": {}}
    for split, shards in splits.items():
        names = [f"{split}-{i}.tar" for i in range(len(shards))]
        n = 0
        for name, contents in zip(names, shards, strict=True):
            with tarfile.open(folder / name, "w") as tar:
                for content in contents:
                    kind, content = content if isinstance(content, tuple) else (ending, content)
                    for suffix, data in ((kind, content), ("cls", str(n % 4).encode())):
                        member = tarfile.TarInfo(f"{n:04d}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
                    n += 1
        info["splits"][split] = {
            "name": split,
            "num_samples": n,
            "filenames": names,
            "shard_lengths": [len(contents) for contents in shards],
        }
    (folder / "_info.json").write_text(json.dumps(info))
    return folder


def numbered(lengths: Sequence[int]) -> list[list[bytes]]:
    """Shards of so many pictures, which are numbered through."""
    numbers = iter(range(sum(lengths)))
    return [[encode(picture(next(numbers))) for _ in range(length)] for length in lengths]


def odd_pictures() -> dict[str, bytes]:
    """A picture in many ways to store it; all but the grey ones can be told from their neighbours."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((40, 30))
    grey = colour.convert("L")
    wide = np.asarray(grey).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    palette = colour.quantize(16)
    return {
        "cmyk.jpg": encode(colour.convert("CMYK"), "JPEG", quality=95),
        "exif.jpg": encode(colour, "JPEG", exif=exif, quality=95, subsampling=0),
        "float.tif": encode(Image.fromarray((np.asarray(grey) / 255).astype(np.float32)), "TIFF"),
        "grey16.png": encode(Image.fromarray(wide)),
        "grey16big.tif": encode(Image.fromarray(wide.astype(">u2")), "TIFF"),
        "grey32.tif": encode(Image.fromarray(wide.astype(np.int32)), "TIFF"),
        "la.png": encode(colour.convert("LA")),
        "bits.png": encode(grey.point(lambda v: 255 * (v > 127)).convert("1")),
        "palette.png": encode(palette),
        "palette_transparent.png": encode(palette, transparency=3),
        "rgba.png": encode(colour.convert("RGBA")),
    }


def unreadable_images() -> dict[str, bytes]:
    good = encode(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    bomb = bytearray(encode(picture(0)))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # what the header says of the size
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    return {
        "bomb.png": bytes(bomb),
        "empty.jpg": b"",
        "text.jpg": b"this is no picture at all, it only says so",
        "truncated.jpg": good[: len(good) // 2],
        "truncated.png": encode(picture(1, 64))[:-30],
    }


def opened(content: bytes, channels: int = 3) -> np.ndarray:
    return np.asarray(open_image(io.BytesIO(content), channels))
