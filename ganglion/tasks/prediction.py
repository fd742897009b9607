"""What a trained network says of images: the same way in for all tasks, whatever an image is."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import UnreadableImage, open_image
from ..data.decode import MODES, Raw, read_image
from .evaluation import compute
from .loaded_model import LoadedModel

#: What a task says of an image whose output it cannot use.
NOT_FINITE = "the network's output is not finite (NaN or infinite)"

#: What one image may be: a file, its bytes, an open binary file, what Pillow has opened, or uint8 values.
ImageLike = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Tensor


def predict(
    model: LoadedModel, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 16, **options: Any
) -> list[dict[str, Any]]:
    """What a network says of one image or of many, after the preprocessing that came with the weights.

    model: what `load_model` returned. It runs where its network is: `model.network.to("cuda")` moves it.
    images: one or many of: a path; the bytes of a file, or an open binary file; a Pillow image; a NumPy array (H, W) or
        (H, W, C), or a tensor (C, H, W), of uint8. An array or tensor of one more axis is a batch of them.
    batch_size: images that are computed at a time; not more than these are in memory.
    options: of the network's task. Of classification `top_k`, the classes of each image (5). Of detection `threshold`,
        the least score of an object (0.3). Of segmentation `window`, the side of windows in which an image is read as
        it is.

    Returns a dictionary for each image, in their order, of nothing but plain types. Of classification:

        {"file": "a.jpg", "predictions": [{"rank": 1, "index": 281, "label": "n02123045", "name": "tabby, tabby cat",
                                           "probability": 0.87}, ...]}

    `file` is the path, or None for what has none; `label` is None where the classes' names are unknown. An image that
    cannot be read, or for which the network's output is not finite, has "error", a reason, in place of what is said.

    Raises TypeError or ValueError for what is no image at all, and for options that the task does not have;
    NetworkError where the network cannot compute images of its own size.
    """
    return list(predictions(model, images, batch_size=batch_size, **options))


def predictions(
    model: LoadedModel, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 16, **options: Any
) -> Iterator[dict[str, Any]]:
    """As `predict`, one dictionary after the other: any number of images, of which one batch is in memory."""
    return model.task.prediction.predictions(model, images, batch_size=batch_size, **options)


def entries(
    model: LoadedModel,
    images: ImageLike | Iterable[ImageLike],
    transform: Callable[[Raw], Tensor],
    entry: Callable[[Any, str | None], dict[str, Any] | str],
    *,
    batch_size: int,
    collate: Callable[[list[Tensor]], Any] = torch.stack,
) -> Iterator[dict[str, Any]]:
    """A dictionary for each image, as a task's `predictions` returns them. One batch is in memory.

    transform: from an image to what the network takes. collate: from some of those to a batch. entry: from the
    network's output for an image, and its file, to what is said of it, or a text that says why nothing is.
    """
    for file, output in _outputs(model, images, transform, batch_size=batch_size, collate=collate):
        said = output if isinstance(output, str) else entry(output, file)
        yield {"file": file, **({"error": said} if isinstance(said, str) else said)}


def _outputs(
    model: LoadedModel,
    images: ImageLike | Iterable[ImageLike],
    transform: Callable[[Raw], Tensor],
    *,
    batch_size: int,
    collate: Callable[[list[Tensor]], Any],
) -> Iterator[tuple[str | None, Any]]:
    """Each image's file and the network's output for it, or, as text, why there is none."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    parameter = next(model.network.parameters())
    left = iter(_transformed(iter(_each(images)), transform, model.data_config["input_size"][0]))
    while batch := list(islice(left, batch_size)):
        tensors = [value for _, value in batch if isinstance(value, Tensor)]
        found = iter(())
        if tensors:
            with torch.inference_mode():
                found = iter(compute(model.network, collate(tensors).to(parameter.device, parameter.dtype)))
        for file, value in batch:
            yield file, (next(found) if isinstance(value, Tensor) else value)


def read(image: ImageLike, channels: int) -> Raw:
    """One image with this number of channels, as `predict` takes it: upright, of 8 bits.

    Raises UnreadableImage for a file that cannot be read; TypeError or ValueError for what is no image at all.
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


def _each(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    if isinstance(images, (np.ndarray, Tensor)):
        return images if images.ndim == 4 else [images]
    single = isinstance(images, (str, os.PathLike, bytes, Image.Image)) or hasattr(images, "read")
    if not single and not isinstance(images, Iterable):
        raise TypeError(
            f"images is a {type(images).__name__}: expected an image, such as a path, or a list of images"
        )
    many: Any = [images] if single else images
    return many


def _transformed(
    images: Iterator[ImageLike], transform: Callable[[Raw], Tensor], channels: int
) -> Iterator[tuple[str | None, Tensor | str]]:
    """Each image's file and what the network takes, or why there is none. The image itself is not kept."""
    for image in images:
        file = os.fspath(image) if isinstance(image, (str, os.PathLike)) else None
        try:
            yield file, transform(read(image, channels))
        except UnreadableImage as error:
            yield file, str(error)


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
