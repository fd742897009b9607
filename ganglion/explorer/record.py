"""What the page is told: a network, and what its scans are given when it looks at images, as a plain dictionary."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..analysis.erf import contribution_squares
from ..analysis.pictures import describe
from ..analysis.scans import Scan, as_analysed, recorded, scan_layers
from ..data import UnreadableImage, eval_transform
from ..data.transforms import per_channel
from ..errors import shown
from ..models import Backbone
from ..tasks.loaded_model import LoadedModel
from ..tasks.prediction import ImageLike, read
from . import packing

#: Classes that the page lists.
TOP = 5

#: Numbers of step sizes' projections and weights up to which all are float32.
SMALL = 400_000


def explore(
    model: LoadedModel,
    images: Sequence[ImageLike],
    *,
    names: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    fields: bool = True,
) -> dict[str, Any]:
    """A network looking at images, as `page_of` makes a page of it.

    model: what `load_model` returned: a network with scans, for images of one or three channels.
    images: each as `ganglion.predict` takes it. names: what the page calls them; their files' names if None.
    size: height and width of the images, those of the network if None.
    fields: with receptive fields, whose gradients take most of the time: three forward passes of four.

    Returns nothing but plain types; numbers are packed by `packing`. The maps are those of
    `ganglion.analysis.scan_map`, the receptive fields those of `effective_receptive_field`, at the centre of every
    stage's map.

    Raises ValueError for a network without scans, of other channels or without stages, or for no image;
    UnreadableImage, a ValueError, for one that cannot be read; TypeError or ValueError for what is no image.
    """
    if not images:
        raise ValueError("expected at least one image")
    if names is not None and len(names) != len(images):
        raise ValueError(f"{len(names)} names for {len(images)} images")
    scan_layers(model.network)
    backbone = next((module for module in model.network.modules() if isinstance(module, Backbone)), None)
    if backbone is None:
        raise ValueError(
            f"{model.name} has scans but no stages of this library: expected one of its networks"
        )
    channels, *own_size = model.data_config["input_size"]
    if channels not in (1, 3):
        raise ValueError(f"{model.name} takes images of {channels} channels: the page shows those of 1 or 3")
    height, width = own_size if size is None else size
    transform = eval_transform(dict(model.data_config, input_size=(channels, height, width)))
    layers: list[dict[str, Any]] = []
    looked = []
    with as_analysed(model.network, torch.float32):
        for i, image in enumerate(images):
            name = names[i] if names is not None else _name(image, i)
            try:
                x = transform(read(image, channels))[None]
            except UnreadableImage as error:
                raise UnreadableImage(f"{name}: {error}") from error
            scans, seen, logits = _look(model.network, backbone, x, fields)
            compact = sum(_count(s) for s in scans.values()) > SMALL
            layers = layers or [_layer(name, of_layer, compact) for name, of_layer in scans.items()]
            looked.append(
                {
                    "name": shown(name),
                    "picture": _picture(x[0], model),
                    "classes": _classes(model, logits),
                    "scans": [_given(s, compact) for s in scans.values()],
                    "fields": seen,
                }
            )
    stages: Any = backbone.stages
    return {
        "network": {
            "name": model.name,
            "weights": _weights(model),
            "parameters": sum(p.numel() for p in model.network.parameters()),
            "size": [height, width],
        },
        "stages": [{"reads": [list(read) for read in stage.plan.reads]} for stage in stages],
        "layers": layers,
        "images": looked,
    }


def _weights(model: LoadedModel) -> str:
    """Where the weights are from, without the folders above: the page may be shown to anybody."""
    said, start, source = model.description.rpartition(" from ")
    return shown(said + start + (os.path.basename(source.rstrip("/\\")) or source))


def _name(image: ImageLike, i: int) -> str:
    return os.path.basename(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else f"image {i + 1}"


def _look(
    network: nn.Module, backbone: Backbone, x: Tensor, fields: bool
) -> tuple[dict[str, list[Scan]], list[dict[str, Any]], Tensor | None]:
    """One pass over x (1, C, H, W): what the scans are given, receptive fields if they are asked for, logits if any."""
    parameter = next(network.parameters())
    x = x.to(parameter.device).requires_grad_(fields)
    with torch.set_grad_enabled(fields), recorded(network) as scans:
        maps = []
        y = backbone.pos_embed(backbone.stem(x))
        for stage in backbone.stages:
            y = stage(y)
            maps.append(y)
        logits = None
        if network is backbone and backbone.num_classes:
            with torch.no_grad():
                logits = backbone.forward_head(backbone.norm(y))[0].cpu()
    return scans, [_field(x, features) for features in maps if fields], logits


def _field(x: Tensor, features: Tensor) -> dict[str, Any]:
    """The receptive field of the centre of a map, as shades (map / max)^0.2 in 255 steps, and its squares."""
    height, width = features.shape[2:]
    seen = features[0, :, height // 2, width // 2].relu().sum()
    (gradient,) = torch.autograd.grad(seen, x, retain_graph=True)
    field = gradient[0].relu().sum(0).cpu()
    largest = float(field.max())
    shades = (field / largest if largest > 0 else field).pow(0.2)
    return {
        "height": field.shape[0],
        "width": field.shape[1],
        "map": [height, width],
        "largest": largest,
        "shades": _png((shades * 255).round().to(torch.uint8)),
        "squares": [
            {"fraction": s.fraction, "side": s.side, "area": s.area, "largest": s.largest}
            for s in contribution_squares(field)
        ],
    }


def _count(scans: list[Scan]) -> int:
    """Numbers of dt_weight, and of what it is multiplied with."""
    return sum(
        scan.dt_weight.numel() + len(scan.routes) * scan.size[0] * scan.size[1] * scan.dt_weight.shape[2]
        for scan in scans
    )


def _layer(name: str, scans: list[Scan], compact: bool) -> dict[str, Any]:
    """What does not depend on the image. name: of the module, such as stages.0.blocks.1.mixer."""
    scan = scans[0]
    height, width = scan.size
    routes = [route for s in scans for route in s.routes]
    parts = name.split(".")
    return {
        "name": name,
        "stage": int(parts[parts.index("stages") + 1]),
        "block": int(parts[parts.index("blocks") + 1]),
        "height": height,
        "width": width,
        "channels": scan.A.shape[1],
        "rank": scan.dt_weight.shape[2],
        "states": scan.A.shape[2],
        "routes": [{"code": route.code, "words": describe(route)} for route in routes],
        "dtWeight": _packed(_stacked(scans, "dt_weight"), packing.SCALE_16, compact),
        "dtBias": packing.floats(_stacked(scans, "dt_bias")),
        "A": packing.floats(_stacked(scans, "A")),
    }


def _packed(values: np.ndarray, scale: int, compact: bool) -> dict[str, Any]:
    return packing.fixed(values, scale) if compact else packing.floats(values)


def _given(scans: list[Scan], compact: bool) -> dict[str, Any]:
    """What a layer's scans are given for one image: low, the step sizes before dt_weight, (K, H * W, R); B and C."""
    proj_KLP = _stacked(scans, "proj")
    rank, states = scans[0].dt_weight.shape[2], scans[0].A.shape[2]
    return {
        "low": _packed(proj_KLP[..., :rank], packing.SCALE_20, compact),
        "B": packing.floats(proj_KLP[..., rank : rank + states]),
        "C": packing.floats(proj_KLP[..., rank + states :]),
    }


def _stacked(scans: list[Scan], field: str) -> np.ndarray:
    """One of the scans' arguments for all routes, routes first: proj is (K, H * W, R + 2 N), dt_weight (K, D, R)."""
    found = []
    for scan in scans:
        value: Tensor = getattr(scan, field)
        if field == "proj":
            value = value[0].flatten(0, 1).unflatten(1, (len(scan.routes), -1)).movedim(1, 0)
        found.append(value)
    return torch.cat(found).float().cpu().numpy()


def _picture(x: Tensor, model: LoadedModel) -> dict[str, str]:
    """What the network sees, x (C, H, W), as a file: JPEG, or PNG where it is small."""
    mean, std = (
        torch.tensor(per_channel(model.data_config[key], len(x)))[:, None, None] for key in ("mean", "std")
    )
    values = ((x.detach() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    if max(values.shape) <= 96:
        return _png(values[0] if len(values) == 1 else values.permute(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(values.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()).save(
        buffer, "JPEG", quality=90
    )
    return {"type": "image/jpeg", "bytes": packing.text(buffer.getvalue())}


def _png(values: Tensor) -> dict[str, str]:
    """(H, W) or (H, W, 3), uint8."""
    buffer = io.BytesIO()
    Image.fromarray(values.contiguous().numpy()).save(buffer, "PNG", compress_level=1)
    return {"type": "image/png", "bytes": packing.text(buffer.getvalue())}


def _classes(model: LoadedModel, logits: Tensor | None) -> list[dict[str, Any]]:
    """The most probable classes. None where the network has no head, or its output is not finite."""
    if logits is None or not logits.isfinite().all():
        return []
    top = logits.float().softmax(0).topk(min(TOP, len(logits)))
    known = model.class_names is not None
    names = model.readable_names() if known else [f"class {i}" for i in range(len(logits))]
    return [
        {"name": shown(names[i]), "probability": p}
        for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
