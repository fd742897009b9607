"""Whatever is in a file becomes the picture that a viewer shows, or a UnreadableImage that says why not."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess

import numpy as np
import pytest
from PIL import Image

from ganglion.data import UnreadableImage, open_image
from ganglion.data.decode import read_image

from .pictures import encode, odd_pictures, opened, picture, unreadable_images

ODD = odd_pictures()
COLOUR = opened(ODD["rgba.png"])
GREY = np.asarray(Image.fromarray(COLOUR).convert("L"))


@pytest.mark.parametrize("name", ["grey16.png", "grey16big.tif", "grey32.tif", "float.tif", "la.png"])
def test_grey_of_any_depth(name):
    """Pillow's own convert("RGB") would make them white."""
    assert np.array_equal(opened(ODD[name], 1), GREY)
    assert np.array_equal(opened(ODD[name]), np.stack([GREY] * 3, axis=2))


def test_modes_under_test():
    """The files do hold what their names say."""
    modes = {name: Image.open(io.BytesIO(content)).mode for name, content in ODD.items()}
    assert modes == {
        "cmyk.jpg": "CMYK", "exif.jpg": "RGB", "float.tif": "F", "grey16.png": "I;16", "grey16big.tif": "I;16B",
        "grey32.tif": "I", "la.png": "LA", "bits.png": "1", "palette.png": "P", "palette_transparent.png": "P",
        "rgba.png": "RGBA",
    }  # fmt: skip


def test_bits():
    assert np.array_equal(opened(ODD["bits.png"], 1), 255 * (GREY > 127))


def test_cmyk():
    found = opened(ODD["cmyk.jpg"]).astype(int)
    assert np.abs(found - COLOUR).mean() < 5


def test_palette():
    image = Image.open(io.BytesIO(ODD["palette.png"]))
    colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    assert np.array_equal(opened(ODD["palette.png"]), colours[np.asarray(image)])


def test_transparency_of_palettes():
    """Kept where it is asked for, dropped where not, without a change of the colours."""
    content = ODD["palette_transparent.png"]
    assert np.array_equal(opened(content), opened(ODD["palette.png"]))
    alpha = opened(content, 4)[..., 3]
    indices = np.asarray(Image.open(io.BytesIO(content)))
    assert np.array_equal(alpha, np.where(indices == 3, 0, 255))


def test_camera_rotation():
    turned = opened(ODD["exif.jpg"]).astype(int)
    assert turned.shape == (40, 30, 3)
    assert np.abs(turned - np.rot90(COLOUR, -1)).mean() < 5


def test_damaged_exif_loses_the_rotation_only():
    content = ODD["exif.jpg"]
    place = content.index(b"Exif\0\0") + 6
    damaged = content[:place] + b"??" + content[place + 2 :]
    assert opened(damaged).shape == (30, 40, 3)


@pytest.mark.parametrize(
    "exif",
    [b"MM\0*\0\0", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0", b"II*\0\xff\xff\xff\xff", b"MM"],
    ids=["header", "entry", "offset", "two bytes"],
)
def test_exif_cut_off_loses_the_rotation_only(exif):
    """Some of them raise struct.error in Pillow, others SyntaxError."""
    content = encode(Image.fromarray(COLOUR), "JPEG", exif=b"Exif\0\0" + exif)
    assert opened(content).shape == (30, 40, 3)


@pytest.mark.parametrize("error", [struct.error, KeyError, SyntaxError, OverflowError, ZeroDivisionError])
def test_no_damage_of_exif_escapes(error, monkeypatch):
    def fail(self):
        raise error("damaged")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert opened(encode(Image.fromarray(COLOUR), "BMP")).shape == (30, 40, 3)


def test_dark_16_bit_images_stay_dark():
    """Nothing is stretched to the brightest value that there is: 255 of 65535 is nearly black."""
    values = np.array([[0, 100, 128, 255, 129]], np.uint16)
    assert opened(encode(Image.fromarray(values)), 1)[0].tolist() == [0, 0, 0, 1, 1]


def test_large_16_bit_images_are_converted_in_pieces():
    values = np.random.default_rng(0).integers(0, 65536, (5, 3000), np.uint16)
    for array in (values, values.T.copy()):
        expected = (array.astype(np.float64) / 65535 * 255 + 0.5).astype(np.uint8)
        assert np.array_equal(opened(encode(Image.fromarray(array)), 1), expected)


@pytest.mark.parametrize(
    ("values", "top"),
    [([0, 0.25, 1], 1), ([0, 2, 255], 255), ([0, 256, 65535], 65535), ([0, 65536, 131072], 131072)],
    ids=str,
)
def test_range_of_floats(values, top):
    image = Image.fromarray(np.array([values], np.float32))
    assert opened(encode(image, "TIFF"), 1)[0].tolist() == [int(v / top * 255 + 0.5) for v in values]


def test_floats_that_are_no_numbers():
    image = Image.fromarray(np.array([[np.nan, np.inf, -np.inf, -1, 0.5, 1]], np.float32))
    assert opened(encode(image, "TIFF"), 1)[0].tolist() == [0, 0, 0, 0, 128, 255]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bomb.png", "60000 x 60000|3600000000 pixels"),
        ("empty.jpg", "empty, or not an image"),
        ("text.jpg", "empty, or not an image"),
        ("truncated.jpg", "truncated"),
        ("truncated.png", "truncated|broken"),
    ],
)
def test_unreadable(name, said):
    with pytest.raises(UnreadableImage, match=said):
        opened(unreadable_images()[name])


def test_smaller_bombs():
    content = io.BytesIO(encode(picture(0, 100)))
    with pytest.raises(UnreadableImage, match="100 x 100 pixels, more than 9999"):
        open_image(content, max_pixels=9999)
    assert open_image(content, max_pixels=10_000).size == (100, 100)


def test_paths(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    for name, said in (
        ("folder.jpg", "directory"),
        ("link.jpg", "No such file"),
        ("none.jpg", "No such file"),
    ):
        with pytest.raises(UnreadableImage, match=said):
            open_image(tmp_path / name)


def test_no_permission(tmp_path, monkeypatch):
    """Whoever runs the tests may be allowed to read everything."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, os.strerror(13), "secret.jpg")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UnreadableImage, match="Permission denied"):
        open_image(tmp_path / "secret.jpg")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "DDS", "SGI", "TGA"])
def test_no_damage_escapes(format):
    """Bytes changed at random give a picture or a UnreadableImage, nothing else."""
    content, rng = encode(picture(7, 32), format), random.Random(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 3, 10))):
            damaged[rng.randrange(min(len(damaged), 200))] = rng.randrange(256)
        try:
            outcomes.add(open_image(io.BytesIO(damaged), max_pixels=10**6).mode)
        except UnreadableImage:
            outcomes.add("unreadable")
    assert outcomes == {"RGB", "unreadable"}


def test_a_decoder_that_fails_in_its_own_way(monkeypatch):
    def fail(self):
        raise RuntimeError("libavif")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(UnreadableImage, match="libavif"):
        opened(encode(picture(0)))


def test_arrays():
    def saved(array):
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    pixels = np.arange(4 * 5 * 13, dtype=np.uint8).reshape(4, 5, 13)
    image = read_image(io.BytesIO(saved(pixels)), 13)
    assert np.array_equal(np.asarray(image), pixels.transpose(2, 0, 1))
    bad = [
        (b"", "No data"),
        (b"\x80\x04N.", "pickle"),
        (saved(pixels[..., :12]), r"uint8 \(4, 5, 12\): expected uint8 \(H, W, 13\)"),
        (saved(pixels.astype(float)), "float64"),
        (saved(pixels)[:-9], "reshape|read"),
    ]
    for content, said in bad:
        with pytest.raises(UnreadableImage, match=said):
            read_image(io.BytesIO(content), 13)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_other_program_runs(tmp_path, monkeypatch):
    """Pillow would hand a PostScript file to Ghostscript, whatever its name."""

    def run(*args, **kwargs):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "check_call", run)
    monkeypatch.setattr(subprocess, "Popen", run)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    (tmp_path / "x.jpg").write_bytes(POSTSCRIPT)
    for file in (tmp_path / "x.jpg", io.BytesIO(POSTSCRIPT)):
        with pytest.raises(UnreadableImage, match="empty, or not an image"):
            open_image(file)
    with (
        Image.open(tmp_path / "x.jpg") as picture,
        pytest.raises(UnreadableImage, match="EPS: expected AVIF, BMP"),
    ):
        open_image(picture)


@pytest.mark.parametrize("format", ["ICNS", "XBM", "PDF", "SPIDER", "MSP", "QOI"])
def test_formats_that_are_not_meant(format):
    file = io.BytesIO()
    picture(0, 16).convert("1" if format in ("XBM", "MSP") else "RGB").save(file, format)
    with pytest.raises(UnreadableImage, match="empty, or not an image"):
        open_image(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    for channels in (3, 13):
        with pytest.raises(UnreadableImage, match="not a regular file"):
            read_image(tmp_path / "x.jpg", channels)
