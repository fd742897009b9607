"""How the kernels of `add_norm` are launched: shapes to tiles, tiles to grids and buffers.

A call of one signature is worked out once. From then on the compiled kernels are called, as `launch` does for the scan.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from .launch import REMEMBERED, on_device, processors
from .norm_kernels import (
    image_backward_kernel,
    image_forward_kernel,
    image_products_kernel,
    image_statistics_kernel,
    pixel_backward_kernel,
    pixel_forward_kernel,
)

#: Elements of a tile: some 16 a lane, so that loads are under way while others are used.
TILE = 2048
#: An image of up to this many elements, padded, is one tile.
WHOLE = 16384
#: Programs a multiprocessor in a pass with sums over pixels: enough to fill it, few enough to add up what they found.
PROGRAMS = 8
MAX_PARTS = 128


class _Call:
    """What all calls of one signature have in common."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtypes: tuple[
            torch.dtype | None, ...
        ],  # of all tensors, None for those that are absent: only told apart
        device: torch.device,
        per_image: bool,
        backward: bool,
    ):
        batch, length, channels = shape
        width = triton.next_power_of_2(channels)
        self.per_image = per_image
        self.n_rows = length if per_image else batch * length
        rows = max(1, TILE // width)
        self.whole = per_image and not backward and triton.next_power_of_2(length) * width <= WHOLE
        if self.whole:
            rows = triton.next_power_of_2(length)
        tiles = -(-self.n_rows // rows)
        programs = PROGRAMS * max(processors(device), 16)
        if per_image:
            programs = min(MAX_PARTS, -(-programs // max(batch, 1)))
        self.n_tiles = -(-tiles // min(tiles, programs))
        self.parts = -(-tiles // self.n_tiles)
        self.grid = (batch * self.parts if per_image else self.parts, 1, 1)
        self.forward_grid = (tiles, 1, 1)
        self.sizes = (self.n_rows, channels)
        self.tile = {"ROWS": rows, "WIDTH": width}
        self.options = {"num_warps": 16 if rows * width > 4096 else 8 if rows * width > 2048 else 4}
        self.compiled: dict[tuple, object] = {}

    def launch(
        self,
        kernel: triton.JITFunction,
        grid: tuple[int, int, int],
        tensors: Sequence[Tensor],
        numbers: Sequence[float],
        **constants: object,
    ) -> None:
        key = (kernel.__name__, *[t.data_ptr() % 16 == 0 for t in tensors])
        compiled = self.compiled.get(key)
        if compiled is None:
            constants.update(self.tile)
            compiled = kernel[grid](*tensors, *numbers, **constants, **self.options)
            if compiled is not None:  # the interpreter gives nothing
                rest = [constants[name] for name in kernel.arg_names[len(tensors) + len(numbers) :]]
                self.compiled[key] = (compiled, rest)
        else:
            compiled, rest = compiled
            compiled[grid](*tensors, *numbers, *rest)


_remembered = functools.lru_cache(maxsize=REMEMBERED)(_Call)


def _call(
    x: Tensor,
    tensors: Sequence[Tensor | None],
    dtypes: tuple[torch.dtype | None, ...],
    per_image: bool,
    backward: bool,
) -> _Call:
    """Of a call with these tensors, whose results have these dtypes."""
    known = tuple([None if t is None else t.dtype for t in tensors])
    return _remembered(x.shape, known + dtypes, x.device, per_image, backward)


def forward(
    x: Tensor,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    per_image: bool,
    eps: float,
    dtype: torch.dtype,
    total_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, total (x if nothing is added), mean and rstd, see `ganglion.ops.dispatch`."""
    tensors = (x, add, scale, shift, weight, bias)
    call = _call(x, tensors, (dtype, total_dtype), per_image, backward=False)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    total = x if add is None else torch.empty(x.shape, dtype=total_dtype, device=x.device)
    mean = torch.empty(x.shape[0] if per_image else call.n_rows, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    given = [x if t is None else t for t in tensors]
    flags = {
        "ADD": add is not None,
        "SCALE": scale is not None,
        "WEIGHT": weight is not None,
        "BIAS": bias is not None,
    }
    with on_device(x):
        if not per_image:
            outputs = (y, total, mean, rstd)
            call.launch(
                pixel_forward_kernel, call.forward_grid, (*given, *outputs), (*call.sizes, eps), **flags
            )
        else:
            found = mean
            if not call.whole:
                found = torch.empty((call.grid[0], 2), dtype=torch.float32, device=x.device)
            numbers = (*call.sizes, call.n_tiles, call.parts, eps)
            outputs = (y, total, mean, rstd, found)
            call.launch(
                image_statistics_kernel, call.grid, (*given, *outputs), numbers, WHOLE=call.whole, **flags
            )
            if not call.whole:
                call.launch(
                    image_forward_kernel,
                    call.grid,
                    (total, *given[4:], found, y, mean, rstd),
                    numbers,
                    WEIGHT=flags["WEIGHT"],
                    BIAS=flags["BIAS"],
                    PARTS=triton.next_power_of_2(call.parts),
                )
    return y, total, mean, rstd


def backward(
    grad_y: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    x: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    per_image: bool,
    dtypes: tuple[torch.dtype, torch.dtype | None],
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients of x, of add (None if it is that of x), and of weight, bias, scale and shift as (4, C)."""
    tensors = (grad_y, grad_total, total, x, scale, weight)
    call = _call(total, tensors, dtypes, per_image, backward=True)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=total.device)

    grad_x = empty(*total.shape, dtype=dtypes[0])
    apart = dtypes[1] is not None and (scale is not None or dtypes[1] != dtypes[0])
    grad_add = empty(*total.shape, dtype=dtypes[1]) if apart else None
    sums = empty(call.grid[0], 4, total.shape[2])
    given = [total if t is None else t for t in tensors]
    flags = {
        "GRAD_TOTAL": grad_total is not None,
        "SCALE": scale is not None,
        "GRAD_ADD": apart,
        "WEIGHT": weight is not None,
    }
    outputs = (grad_x, grad_x if grad_add is None else grad_add, sums)
    with on_device(total):
        if not per_image:
            numbers = (*call.sizes, call.n_tiles)
            call.launch(pixel_backward_kernel, call.grid, (*given, mean, rstd, *outputs), numbers, **flags)
        else:
            numbers = (*call.sizes, call.n_tiles, call.parts)
            found = empty(call.grid[0], 2)
            call.launch(
                image_products_kernel,
                call.grid,
                (grad_y, total, given[5], mean, rstd, found, sums),
                numbers,
                WEIGHT=flags["WEIGHT"],
            )
            call.launch(
                image_backward_kernel,
                call.grid,
                (*given, mean, rstd, found, *outputs),
                numbers,
                PARTS=triton.next_power_of_2(call.parts),
                **flags,
            )
    return grad_x, grad_add, sums.sum(0)
