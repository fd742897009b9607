"""A model as a program of tensors: what of it is exported, under which names, of which sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import unknown
from ..heads import MaskRCNN, Segmentor
from ..models import Backbone
from .simplify import simplify

#: What may be dynamic: the number of images, and their height and width.
DYNAMIC = ("batch", "size")


@dataclass(frozen=True, kw_only=True)
class Traced:
    """An exported program and what is known of it.

    network: what was traced, from images to a tuple of tensors. example: the images it was traced with. outputs: names
    of its results. softmax: whether they are probabilities. dynamic: of `DYNAMIC`. least: the smallest height and width
    where they are dynamic.
    """

    program: torch.export.ExportedProgram
    network: nn.Module
    example: Tensor
    outputs: list[str]
    softmax: bool
    dynamic: tuple[str, ...]
    least: int


class Outputs(nn.Module):
    """A model whose results are a flat tuple of tensors with names."""

    def __init__(self, model: nn.Module, *, softmax: bool = False):
        super().__init__()
        self.model: nn.Module = model
        self.softmax: bool = softmax

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.model.dense(images) if isinstance(self.model, MaskRCNN) else self.model(images)  # pyright: ignore[reportCallIssue]  a module's methods are unknown to its type
        found = tuple(t for _, t in named(self.model, found))
        return tuple(t.softmax(1) for t in found) if self.softmax else found


def named(model: nn.Module, found: Any) -> list[tuple[str, Tensor]]:
    """The tensors among a model's results, with names."""
    if isinstance(model, MaskRCNN):
        parts = zip(("map", "objectness", "deltas"), found, strict=True)
        return [(f"{name}_{i}", t) for name, tensors in parts for i, t in enumerate(tensors)]
    if isinstance(found, Tensor):
        return [("logits" if getattr(model, "num_classes", 0) else "features", found)]
    if isinstance(found, Mapping):
        return [(str(name), t) for name, t in found.items()]
    return [(f"features_{i}", t) for i, t in enumerate(found)]


def trace(
    model: nn.Module, *, size: int | Sequence[int], dynamic: Sequence[str] = (), softmax: bool = False
) -> Traced:
    """Export a model's program (torch.export).

    size: of the images, height and width. dynamic: what may differ when the program runs, of `DYNAMIC`. softmax:
    probabilities in place of logits, of a classifier.

    Raises ValueError for arguments that make no sense or sizes that the model does not take.
    """
    height, width = _sides(size)
    for name in dynamic:
        if name not in DYNAMIC:
            raise ValueError(unknown("dynamic", name, DYNAMIC))
    least = _least(model) if "size" in dynamic else 1
    if min(height, width) < least:
        raise ValueError(
            f"size {height} x {width}: a program of dynamic sizes serves this network from {least} x {least} on"
        )
    network = Outputs(model, softmax=softmax).eval()
    generator = torch.Generator().manual_seed(0)
    # Two images: a program that is made with one takes the number of images for 1.
    example = torch.randn(
        2 if "batch" in dynamic else 1, _channels(model), height, width, generator=generator
    )
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)} if "batch" in dynamic else {}
    if "size" in dynamic:
        axes |= {2: torch.export.Dim("height", min=least), 3: torch.export.Dim("width", min=least)}
    with torch.no_grad():
        found = model.dense(example) if isinstance(model, MaskRCNN) else model(example)
        outputs = [name for name, _ in named(model, found)]
        if softmax and outputs != ["logits"]:
            raise ValueError(
                f"softmax: the model's results are {', '.join(outputs)}, expected a classifier's logits"
            )
        try:
            program = torch.export.export(network, (example,), dynamic_shapes=(axes,) if axes else None)
        except RuntimeError as error:
            if not dynamic:
                raise
            said = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"dynamic {', '.join(dynamic)}: torch.export cannot do this network so ({said})"
            ) from error
    simplify(program)
    return Traced(
        program=program,
        network=network,
        example=example,
        outputs=outputs,
        softmax=softmax,
        dynamic=tuple(name for name in DYNAMIC if name in dynamic),
        least=least,
    )


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"size {size!r}: expected height and width of the images, such as (224, 224)")
    return sides[0], sides[1]


def _channels(model: nn.Module) -> int:
    """Of the images that a model takes, as its first convolution has them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ValueError(
        f"{type(model).__name__} has no convolution: cannot tell how many channels its images have"
    )


def _least(model: nn.Module) -> int:
    """The smallest side of images that a program of dynamic sizes serves.

    Sides of maps that are results stay symbols, which torch.export takes for at least 2."""
    if isinstance(model, Backbone):
        return 4
    if isinstance(model, MaskRCNN):
        return model.strides[-1] + 1
    reduction = getattr(getattr(model, "feature_info", None), "reduction", None)
    if isinstance(model, Segmentor) or reduction is None:
        return 33
    return max(reduction()) + 1
