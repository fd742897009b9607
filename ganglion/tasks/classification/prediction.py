"""The most probable classes of images, and a picture of them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...data import BrokenImage, eval_transform, open_image
from ...data.decode import MODES, Raw, read_image
from ...errors import shown
from ..evaluation import compute
from ..loading import LoadedModel

#: What one image may be: a file, its bytes, an open binary file, what Pillow has opened, or uint8 values.
ImageLike = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Tensor

_PAPER, _INK, _BAR = "#ffffff", "#222222", "#c9d6e8"
_NARROWEST = 320


def predict(
    model: LoadedModel, images: ImageLike | Iterable[ImageLike], *, top_k: int = 5, batch_size: int = 16
) -> list[dict[str, Any]]:
    """The most probable classes of one image or of many, after the preprocessing that came with the weights.

    model: what `load_model` returned. It runs where its network is: `model.network.to("cuda")` moves it.
    images: one or many of: a path; the bytes of a file, or an open binary file; a Pillow image; a NumPy array (H, W) or
        (H, W, C), or a tensor (C, H, W), of uint8. An array or tensor of one more axis is a batch of them.
    top_k: classes of each image. batch_size: images that are computed at a time; not more than these are in memory.

    Returns a dictionary for each image, in their order, of nothing but plain types:

        {"file": "a.jpg", "predictions": [{"rank": 1, "index": 281, "label": "n02123045", "name": "tabby, tabby cat",
                                           "probability": 0.87}, ...]}

    `file` is the path, or None for what has none; `label` is None where nobody knows the classes' names. An image that
    cannot be read, or for which the network's output is not finite, has "error", a reason, in place of "predictions".

    Raises TypeError or ValueError for what is no image at all, NetworkError where the network cannot compute images of
    its own size.
    """
    return list(predictions(model, images, top_k=top_k, batch_size=batch_size))


def predictions(
    model: LoadedModel, images: ImageLike | Iterable[ImageLike], *, top_k: int = 5, batch_size: int = 16
) -> Iterator[dict[str, Any]]:
    """As `predict`, one dictionary after the other: any number of images, of which one batch is in memory."""
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}: expected at least 1")
    transform = eval_transform(model.data_config)
    channels = model.data_config["input_size"][0]
    names = model.readable_names()
    left = iter(_each(images))
    while batch := list(islice(_transformed(left, transform, channels), batch_size)):
        tensors = [value for _, value in batch if isinstance(value, Tensor)]
        ranked = iter(_ranked(model, tensors, min(top_k, len(names))) if tensors else [])
        for file, value in batch:
            if not isinstance(value, Tensor):
                yield {"file": file, "error": value}
                continue
            best = next(ranked)
            if best is None:
                yield {"file": file, "error": "the network's output is not finite (NaN or infinite)"}
                continue
            yield {"file": file, "predictions": [_prediction(model, names, *entry) for entry in best]}


def read(image: ImageLike, channels: int) -> Raw:
    """One image with so many channels, as `predict` takes it: upright, of 8 bits.

    Raises BrokenImage for a file that cannot be read; TypeError or ValueError for what is no image at all.
    """
    if isinstance(image, bytes):
        return read_image(io.BytesIO(image), channels)
    if isinstance(image, Image.Image):
        if channels not in MODES:
            raise ValueError(
                f"the network takes {channels} channels: expected an array or tensor, not a Pillow image"
            )
        return open_image(image, channels)
    if isinstance(image, (np.ndarray, Tensor)):
        return _from_values(image, channels)
    if isinstance(image, (str, os.PathLike)) or hasattr(image, "read"):
        return read_image(image, channels)
    raise TypeError(
        f"an image is a {type(image).__name__}: expected a path, a Pillow image, an array or tensor of uint8, or bytes"
    )


def draw(image: Image.Image, entry: Mapping[str, Any]) -> Image.Image:
    """The image, and under it a line for each of its predictions, with a bar as long as it is probable.

    entry: a dictionary of `predict`. Returns an RGB image, of at least 320 pixels in width so that the lines can be
    read.
    """
    found = [(shown(p["name"]), p["probability"]) for p in entry["predictions"]]
    width = max(image.width, _NARROWEST)
    size = max(14, width // 36)
    try:
        font = ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:  # Pillow's own font knows fewer letters
        font = ImageFont.load_default(size)
    line, margin = round(1.5 * size), size // 2
    canvas = Image.new("RGB", (width, image.height + line * len(found) + 2 * margin), _PAPER)
    canvas.paste(image.convert("RGB"), ((width - image.width) // 2, 0))
    pen = ImageDraw.Draw(canvas)
    for i, (name, probability) in enumerate(found):
        top = image.height + margin + i * line
        end = margin + round((width - 2 * margin) * probability)
        pen.rectangle((margin, top, max(end, margin + 1), top + line - 3), fill=_BAR)
        text = f"{100 * probability:.1f} %  {name}"
        while pen.textlength(text, font) > width - 3 * margin and len(text) > 12:
            text = text[:-4].rstrip() + "..."
        pen.text((2 * margin, top + (line - 3) // 2), text, fill=_INK, font=font, anchor="lm")
    return canvas


def _each(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    if isinstance(images, (np.ndarray, Tensor)):
        return images if images.ndim == 4 else [images]
    single = isinstance(images, (str, os.PathLike, bytes, Image.Image)) or hasattr(images, "read")
    if not single and not isinstance(images, Iterable):
        raise TypeError(
            f"images is a {type(images).__name__}: expected an image, such as a path, or a list of images"
        )
    return [images] if single else images  # pyright: ignore


def _transformed(
    images: Iterator[ImageLike], transform: Any, channels: int
) -> Iterator[tuple[str | None, Tensor | str]]:
    """Each image's file and what the network takes, or why there is none. The image itself is not kept."""
    for image in images:
        file = os.fspath(image) if isinstance(image, (str, os.PathLike)) else None
        try:
            yield file, transform(read(image, channels))
        except BrokenImage as error:
            yield file, str(error)


def _ranked(model: LoadedModel, tensors: list[Tensor], k: int) -> list[list[tuple[int, int, float]] | None]:
    """(rank, index, probability) of the k most probable classes, None where the output is not finite."""
    place = next(model.network.parameters())
    with torch.inference_mode():
        images_BCHW = torch.stack(tensors).to(place.device, place.dtype)
        shares_BC = compute(model.network, images_BCHW).float().softmax(dim=1)
        finite_B = shares_BC.isfinite().all(dim=1).tolist()
        top = shares_BC.topk(k, dim=1)
    rows = zip(finite_B, top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        [(rank, *pair) for rank, pair in enumerate(zip(indices, values, strict=True), start=1)]
        if finite
        else None
        for finite, indices, values in rows
    ]


def _prediction(
    model: LoadedModel, names: list[str], rank: int, index: int, probability: float
) -> dict[str, Any]:
    label = None if model.class_names is None else model.class_names[index]
    return {"rank": rank, "index": index, "label": label, "name": names[index], "probability": probability}


def _from_values(values: np.ndarray | Tensor, channels: int) -> Raw:
    """An image from an array (H, W) or (H, W, C), or a tensor (C, H, W), of uint8."""
    form, axes = ("(C, H, W)", (3,)) if isinstance(values, Tensor) else ("(H, W) or (H, W, C)", (2, 3))
    if str(values.dtype) not in ("uint8", "torch.uint8") or values.ndim not in axes or 0 in values.shape:
        raise ValueError(
            f"an image is {values.dtype} {tuple(values.shape)}: expected uint8 {form}, of values from 0 to 255"
        )
    pixels = values.detach().cpu().permute(1, 2, 0).numpy() if isinstance(values, Tensor) else values
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    pixels, found = np.ascontiguousarray(pixels), 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels in MODES and found in MODES:
        return open_image(Image.fromarray(pixels), channels)
    if found != channels:
        raise ValueError(f"an image has {found} channels: the network takes {channels}")
    return torch.from_numpy(pixels).permute(2, 0, 1)
