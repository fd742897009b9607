"""How the kernels of `add_norm` are launched: shapes to tiles, tiles to grids and buffers.

A call of one signature is worked out once; from then on the compiled kernels are called. A network has dozens of norms,
and for few images the host's time is all of it.
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
    """What all calls of one signature have in common.

    tensors: the dtype of each, None for those that are absent. results: the dtypes of what is returned.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        tensors: tuple[torch.dtype | None, ...],
        results: tuple[torch.dtype | None, ...],
        device: torch.device,
        per_image: bool,
        backward: bool,
    ):
        batch, length, channels = shape
        width = triton.next_power_of_2(channels)
        n_rows = length if per_image else batch * length
        rows = max(1, TILE // width)
        self.whole = per_image and not backward and triton.next_power_of_2(length) * width <= WHOLE
        if self.whole:
            rows = triton.next_power_of_2(length)
        tiles = -(-n_rows // rows)
        programs = PROGRAMS * max(processors(device), 16)
        if per_image:
            programs = min(MAX_PARTS, -(-programs // batch))
        n_tiles = -(-tiles // min(tiles, programs))
        parts = -(-tiles // n_tiles)
        self.programs = batch * parts if per_image else parts
        self.tiles = tiles
        self.n_groups = batch if per_image else n_rows
        self.numbers = (n_rows, channels, n_tiles, parts) if per_image else (n_rows, channels, n_tiles)
        present = [dtype is not None for dtype in tensors]
        # grad_add is grad_x unless it differs.
        self.apart = backward and results[1] is not None and (present[4] or results[1] != results[0])
        self.constants: dict[str, object] = {
            "ROWS": rows,
            "WIDTH": width,
            "PARTS": triton.next_power_of_2(parts),
            "WHOLE": self.whole,
            "GRAD_ADD": self.apart,
        }
        names = (
            ("", "GRAD_TOTAL", "", "", "SCALE", "WEIGHT")
            if backward
            else ("", "ADD", "SCALE", "", "WEIGHT", "BIAS")
        )
        self.constants.update(zip(names, present, strict=True))
        self.options = {"num_warps": 16 if rows * width > 4096 else 8 if rows * width > 2048 else 4}
        self.compiled: dict[object, tuple] = {}

    def launch(
        self, kernel: triton.JITFunction, programs: int, tensors: Sequence[Tensor], numbers: Sequence[float]
    ) -> None:
        low = 0
        for t in tensors:
            low |= t.data_ptr()
        # A kernel is compiled for pointers that are multiples of 16, and once more where one is not.
        key = kernel if low % 16 == 0 else (kernel, *[t.data_ptr() % 16 == 0 for t in tensors])
        found = self.compiled.get(key)
        if found is not None:
            run, rest = found
            run(*tensors, *numbers, *rest)
            return
        names = kernel.arg_names[len(tensors) + len(numbers) :]
        constants = {name: self.constants[name] for name in names}
        compiled = kernel[(programs, 1, 1)](*tensors, *numbers, **constants, **self.options)
        if compiled is not None:  # the interpreter gives nothing
            self.compiled[key] = compiled[(programs, 1, 1)], tuple(constants.values())


_remembered = functools.lru_cache(maxsize=REMEMBERED)(_Call)


def _dtype(t: Tensor | None) -> torch.dtype | None:
    return None if t is None else t.dtype


def forward(
    x: Tensor,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: tuple[int, int, int],
    per_image: bool,
    eps: float,
    dtype: torch.dtype,
    total_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, total (x if nothing is added) and statistics, see `ganglion.ops.dispatch`."""
    dtypes = (x.dtype, _dtype(add), _dtype(scale), _dtype(shift), _dtype(weight), _dtype(bias))
    call = _remembered(shape, dtypes, (dtype, total_dtype), x.device, per_image, False)
    y = torch.empty_like(x, dtype=dtype)
    total = x if add is None else torch.empty_like(x, dtype=total_dtype)
    statistics = torch.empty((2, call.n_groups), dtype=torch.float32, device=x.device)
    weight, bias = x if weight is None else weight, x if bias is None else bias
    given = (
        x,
        x if add is None else add,
        x if scale is None else scale,
        x if shift is None else shift,
        weight,
        bias,
    )
    with on_device(x):
        if not per_image:
            numbers = (*call.numbers[:2], eps)
            call.launch(pixel_forward_kernel, call.tiles, (*given, y, total, statistics), numbers)
            return y, total, statistics
        found = statistics
        if not call.whole:
            found = torch.empty((call.programs, 2), dtype=torch.float32, device=x.device)
        numbers = (*call.numbers, eps)
        tensors = (*given, y, total, statistics, found)
        call.launch(image_statistics_kernel, call.programs, tensors, numbers)
        if not call.whole:
            tensors = (total, weight, bias, found, y, statistics)
            call.launch(image_forward_kernel, call.programs, tensors, numbers)
    return y, total, statistics


def backward(
    grad_y: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    x: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    statistics: Tensor,
    shape: tuple[int, int, int],
    per_image: bool,
    results: tuple[torch.dtype, torch.dtype | None],
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients of x, of add (None if it is that of x), and of weight, bias, scale and shift as (4, C)."""
    dtypes = (grad_y.dtype, _dtype(grad_total), total.dtype, _dtype(x), _dtype(scale), _dtype(weight))
    call = _remembered(shape, dtypes, results, total.device, per_image, True)
    grad_x = torch.empty_like(total, dtype=results[0])
    grad_add = torch.empty_like(total, dtype=results[1]) if call.apart else None
    sums = torch.empty((call.programs, 4, shape[2]), dtype=torch.float32, device=total.device)
    weight = total if weight is None else weight
    given = (
        grad_y,
        total if grad_total is None else grad_total,
        total,
        total if x is None else x,
        total if scale is None else scale,
        weight,
        statistics,
    )
    outputs = (grad_x, grad_x if grad_add is None else grad_add, sums)
    with on_device(total):
        if not per_image:
            call.launch(pixel_backward_kernel, call.programs, (*given, *outputs), call.numbers)
        else:
            found = torch.empty((call.programs, 2), dtype=torch.float32, device=total.device)
            tensors = (grad_y, total, weight, statistics, found, sums)
            call.launch(image_products_kernel, call.programs, tensors, call.numbers)
            call.launch(image_backward_kernel, call.programs, (*given, found, *outputs), call.numbers)
    return grad_x, grad_add, sums.sum(0)
