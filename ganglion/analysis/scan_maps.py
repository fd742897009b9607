"""Activation maps of the scan: what a pixel reads of the image, and who reads it (VMamba, Figures 4 to 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import unknown
from ..ops import Route
from ..ops.attention import Mode, Walk, to_image
from .scans import scans_of

Normalise = Literal["none", "minmax", "max"]

#: Bytes of the largest full map that is made.
LIMIT = 10**9


def scan_map(
    mixer: nn.Module,
    x: Tensor,
    mode: Mode = "CwBdtw",
    route: int | None = None,
    query: tuple[int, int] | None = None,
    reads: bool = True,
    *,
    earlier: Sequence[Tensor] = (),
) -> Tensor:
    """The scan of one image as attention between its pixels (VMamba, Eq. 10-19; `ganglion.ops.attention`).

    mixer: an `SS2D`, as the block of a network has. x: what it is called with, (1, dim, H, W) or (dim, H, W),
        float32 or float64, in which all is computed. earlier: the features that it reads if it is a ganglion layer's.
    mode: "CB", "CwBw", "CwBdtw" (what is really added) or "ww"; each is the mean over the channels.
    route: its index in the mixer's pattern; the sum over all routes if None.
    query: None for the full map, or (row, column) of a pixel for the map of that pixel alone, in memory O(H W).
    reads: of the map of one pixel: what it reads (True), or who reads it.

    Returns the full map (H * W, H * W), [reader, read] with pixels counted row by row, or that of one pixel (H, W).

    Of "cascade2d" the routes along columns scan what those along rows gave; all are as walked, at the pixels they read.

    Raises TypeError for a module without a scan or a dtype that is not served, ValueError for an unknown mode,
    more than one image, or a full map above 1 GB, and IndexError for a route or pixel that does not exist.
    """
    if mode not in get_args(Mode):
        raise ValueError(unknown("mode", mode, get_args(Mode)))
    if x.ndim == 3:
        x, earlier = x[None], [e[None] if e.ndim == 3 else e for e in earlier]
    if x.ndim != 4 or len(x) != 1:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected one image, (1, dim, H, W) or (dim, H, W)")
    if getattr(mixer, "aggregates", False) and not earlier:
        raise ValueError("the mixer of a ganglion layer: expected earlier=[...], the features that it reads")
    height, width = x.shape[2:]
    if query is None:
        check_full(height, width, x.dtype)
    elif not (0 <= query[0] < height and 0 <= query[1] < width):
        raise IndexError(f"query {tuple(query)}: expected (row, column) on a map of {height} x {width}")
    with torch.no_grad():
        walks = walks_of(mixer, x, earlier)
        if route is not None:
            if not 0 <= route < len(walks):
                raise IndexError(f"route {route}: expected 0..{len(walks) - 1}, or None for the sum")
            walks = [walks[route]]
        if query is None:
            return _full(walks, mode)
        pixel = query[0] * width + query[1]
        found = torch.zeros_like(walks[0].dt[:, 0])
        for walk in walks:
            step = int((walk.order == pixel).nonzero())
            found[walk.order] += walk.row(step, mode) if reads else walk.column(step, mode)
        return found.view(height, width)


def walks_of(mixer: nn.Module, x: Tensor, earlier: Sequence[Tensor] = ()) -> list[Walk]:
    """The walks of an `SS2D` over x (1, dim, H, W), one for each route. Raises TypeError for another module."""
    return [walk for scan in scans_of(mixer, x, earlier) for walk in scan.walks()]


def diagonal_map(
    mixer: nn.Module, x: Tensor, mode: Mode = "CwBdtw", *, earlier: Sequence[Tensor] = ()
) -> Tensor:
    """What every pixel reads of itself, summed over the routes, (H, W): the full map's diagonal (VMamba, Figure 5c).

    Arguments and errors as of `scan_map`.
    """
    height, width = x.shape[-2:]
    with torch.no_grad():
        walks = walks_of(mixer, x.view(1, -1, height, width), earlier)
        found = torch.zeros_like(walks[0].dt[:, 0])
        for walk in walks:
            found[walk.order] += walk.diagonal(mode)
    return found.view(height, width)


def check_full(height: int, width: int, dtype: torch.dtype) -> None:
    """Raise ValueError if the full map of this number of pixels is above `LIMIT`."""
    size = (height * width) ** 2 * dtype.itemsize
    if size > LIMIT:
        raise ValueError(
            f"the full map of {height} x {width} pixels has {size} bytes ({size / 1e9:.1f} GB), the limit is "
            f"{LIMIT} (1 GB): ask for the map of one pixel, scan_map(..., query=(row, column)), "
            f"which has {height * width * dtype.itemsize} bytes"
        )


def _full(walks: Sequence[Walk], mode: Mode) -> Tensor:
    """The sum over walks in image order. Row by row: there is one (L, L) array, the result."""
    total = walks[0].dt.new_zeros(len(walks[0].order), len(walks[0].order))
    for walk in walks:
        for i, pixel in enumerate(walk.order.tolist()):
            total[pixel, walk.order] += walk.row(i, mode)
    return total


def normalised(values: Tensor, how: Normalise) -> Tensor:
    """A map as VMamba's code shows it: "none" as it is, "minmax" from 0 to 1, "max" its magnitude by the largest.

    A constant map becomes 0 by "minmax" and 1 (or 0, of zeros) by "max". Raises ValueError for another name.
    """
    if how == "none":
        return values
    if how == "minmax":
        values = values - values.min()
    elif how != "max":
        raise ValueError(unknown("normalisation", how, get_args(Normalise)))
    largest = values.abs().max()
    return values.abs() / largest if largest else values


@dataclass(frozen=True, kw_only=True)
class LayerMaps:
    """Maps of one layer: rows of maps, in each one for every route, then their sum or mean.

    rows: what each row shows. whole: what the last map of each is.
    """

    maps: list[list[Tensor]]
    whole: str
    rows: list[str]
    routes: list[Route]


def in_layer(
    mixer: nn.Module,
    x: Tensor,
    earlier: Sequence[Tensor],
    view: Literal["pixel", "matrix", "diagonal", "rows"],
    modes: Sequence[Mode],
    pixel: tuple[int, int],
    normalise: Normalise = "none",
) -> LayerMaps:
    """The maps of VMamba's Figures 4 to 7, in each mode.

    view: "pixel", what that pixel reads and who reads it (H, W); "matrix", the full maps (H * W, H * W); "diagonal",
        what every pixel reads of itself (H, W), Figure 5c; "rows", what the pixels after a quarter, a half, three
        quarters and all of each route read (H, W), Figure 6.
    normalise: each route's map, as the papers' code does: "minmax" to 0..1, "max" by its largest magnitude. Then the
        last map is the mean of these.

    Errors as of `scan_map`.
    """
    height, width = x.shape[2:]
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise IndexError(f"pixel {pixel}: expected (row, column) on a map of {height} x {width}")
    if view == "matrix":
        check_full(height, width, x.dtype)
    scans = scans_of(mixer, x, earlier)
    walks = [walk for scan in scans for walk in scan.walks()]
    index = pixel[0] * width + pixel[1]
    steps = [int((walk.order == index).nonzero()) for walk in walks]
    last = height * width - 1
    maps, rows = [], []
    for mode in modes:
        if view == "pixel":
            each = {
                "reads": [to_image(w.row(i, mode), w) for w, i in zip(walks, steps, strict=True)],
                "is read by": [to_image(w.column(i, mode), w) for w, i in zip(walks, steps, strict=True)],
            }
        elif view == "matrix":
            each = {"": [_full([walk], mode) for walk in walks]}
        elif view == "diagonal":
            each = {"": [to_image(walk.diagonal(mode), walk) for walk in walks]}
        else:
            points = {"1/4": last // 4, "1/2": last // 2, "3/4": 3 * last // 4, "end": last}
            each = {at: [to_image(walk.row(i, mode), walk) for walk in walks] for at, i in points.items()}
        for title, found in each.items():
            flat = [normalised(m, normalise) for m in found]
            whole = torch.stack(flat)
            flat.append(whole.sum(0) if normalise == "none" else whole.mean(0))
            maps.append([m if m.ndim == 2 else m.view(height, width) for m in flat])
            rows.append(f"{mode} {title}".strip())
    last_map = "sum over the routes" if normalise == "none" else "mean over the routes"
    return LayerMaps(
        maps=maps, rows=rows, whole=last_map, routes=[route for scan in scans for route in scan.routes]
    )
