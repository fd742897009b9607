"""How the kernels are launched: shapes to a tiling, a tiling to grids and buffers.

Two parallel forms, and a choice between them by shape (`tiling`):

* sequential: a program walks a whole route. Images, channels and routes are the parallelism.
* chunked: a route is cut into segments. One launch finds what each segment does to the state, a second one
  starts every segment from the state that those before it leave behind.

The routes of one pixel are summed without atomics, so that results are the same in every run: a program walks several
routes one after another and adds up in place, and what different programs found is kept apart and summed at the end.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..routes import CHUNK
from .adjoint import backward_kernel
from .kernels import LOG1P_FULL, LOG1P_HALF, forward_kernel, segment_ends_kernel

#: Programs per multiprocessor below which a launch is split further. Programs are single warps, but the steps of a
#: tile are independent work inside a warp, so that few of them keep a scheduler busy.
FILL = 5
#: One warp: see `kernels`, which also fetch ahead by themselves. Products and sums are fused, which newer releases of
#: Triton do only where they are asked to.
OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
#: A segment reads what all segments before it do to the state, so their number is bounded.
MAX_SEGMENTS = 32


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How one call is cut into programs.

    block_d: channels of a program, a power of two of at least 16.
    steps: steps of a tile, a power of two of at least 16 that divides CHUNK.
    walks: routes that a program walks one after another; divides the number of routes. 1 in the chunked form and in
        the backward pass: what is needed only from route to route would leave it too few registers.
    segment_chunks: chunks of CHUNK steps in a segment; the sequential form has one segment.
    """

    block_d: int
    steps: int
    walks: int
    segment_chunks: int


def tiling(
    *,
    batch: int,
    length: int,
    channels: int,
    n_routes: int,
    processors: int,
    backward: bool,
) -> Tiling:
    """The tiling for a shape on a device of `processors` multiprocessors."""
    # As many channels as lanes: see `kernels`.
    block_d, steps = 32, 16
    chunks = -(-length // CHUNK)
    blocks = batch * -(-channels // block_d)
    wanted = FILL * processors
    # Fewest partial sums first: they cost memory traffic. Then segments: they cost the recurrence twice.
    for walks in range(1 if backward else n_routes, 0, -1):
        if n_routes % walks == 0 and blocks * (n_routes // walks) >= wanted:
            return Tiling(block_d=block_d, steps=steps, walks=walks, segment_chunks=chunks)
    segments = min(MAX_SEGMENTS, chunks, -(-wanted // (blocks * n_routes)))
    return Tiling(block_d=block_d, steps=steps, walks=1, segment_chunks=-(-chunks // segments))


@functools.cache
def processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).gpu_subslice_count
    return 1


def backend_of(x: Tensor) -> str:
    """The name of the compiler's backend for the device of x."""
    return "hip" if torch.version.hip else x.device.type


def precision(dtype: torch.dtype, backend: str) -> str:
    """How products of matrices are computed. Inputs of half precision lose nothing in TF32, and it keeps the range of
    float32 for gradients; three products in TF32 have the precision of float32, at three quarters of its instructions.
    """
    if dtype == torch.float32:
        return "tf32x3" if backend == "cuda" else "ieee"
    return "ieee" if backend == "hip" else "tf32"


def constants(
    *,
    dtype: torch.dtype,
    length: int,
    channels: int,
    n_routes: int,
    d_state: int,
    dt_rank: int,
    routes: Sequence[int],
    steps: int,
    block_d: int,
    backend: str,
    backward: bool,
) -> dict[str, object]:
    """The compile-time arguments that all kernels share."""
    full = dtype == torch.float32
    return {
        "ROUTES": tuple(routes),
        "N": d_state,
        "N_PAD": triton.next_power_of_2(d_state),
        "R": dt_rank,
        # The least is 16. More take fewer instructions and more registers, and backward has none to spare.
        "PIECE": 32 if not backward and 16 < dt_rank <= 32 else 16,
        "T": steps,
        "BLOCK_D": block_d,
        "PRECISION": precision(dtype, backend),
        "COEFFICIENTS": (LOG1P_FULL if full else LOG1P_HALF).value,
        "WIDE": length * max(channels, n_routes * (dt_rank + 2 * d_state)) >= 2**31,
        "EVEN": length % steps == 0 and channels % block_d == 0,
        "RESTART": any(code & 8 for code in routes),
    }


class _Call:
    """What the launches of one forward or backward call have in common."""

    def __init__(
        self,
        x: Tensor,
        dt_weight: Tensor,
        A: Tensor,
        routes: Sequence[int],
        how: Tiling | None,
        backward: bool,
    ):
        self.batch, self.height, self.width, self.channels = x.shape
        self.length = self.height * self.width
        self.n_routes, _, self.d_state = A.shape
        self.chunks = -(-self.length // CHUNK)
        self.tiling = how or tiling(
            batch=self.batch,
            length=self.length,
            channels=self.channels,
            n_routes=self.n_routes,
            processors=processors(x.device),
            backward=backward,
        )
        if self.tiling.walks > 1 and self.tiling.segment_chunks < self.chunks:
            raise ValueError(
                f"{self.tiling}: segments of one route may add up in place with no other route's"
            )
        if self.tiling.walks > 1 and backward:
            raise ValueError(
                f"{self.tiling}: a program of the backward pass walks one route, walks has to be 1"
            )
        self.segments = -(-self.chunks // self.tiling.segment_chunks)
        self.groups = self.n_routes // self.tiling.walks
        self.blocks = -(-self.channels // self.tiling.block_d)
        self.shape = (self.batch, self.height, self.width, self.channels)
        self.sizes = (*self.shape, self.segments, self.tiling.segment_chunks * CHUNK)
        self.constants = constants(
            dtype=x.dtype,
            length=self.length,
            channels=self.channels,
            n_routes=self.n_routes,
            d_state=self.d_state,
            dt_rank=dt_weight.shape[2],
            routes=routes,
            steps=self.tiling.steps,
            block_d=self.tiling.block_d,
            backend=backend_of(x),
            backward=backward,
        )

    def grid(self, groups: int) -> tuple[int]:
        return (self.batch * self.blocks * groups * self.segments,)

    def segment_ends(
        self, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, adjoint: bool
    ):
        """What segments do to the state, (B, K, segments, 2, N, D); an unread placeholder if there is one segment."""
        if self.segments == 1:
            return A
        shape = (self.batch, self.n_routes, self.segments, 2, self.d_state, self.channels)
        ends = torch.empty(shape, dtype=torch.float32, device=x.device)
        segment_ends_kernel[self.grid(self.n_routes)](
            x,
            proj,
            dt_weight,
            dt_bias,
            A,
            ends,
            *self.sizes,
            ADJOINT=adjoint,
            **OPTIONS,
            **self.constants,
        )
        return ends


def forward(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    routes: Sequence[int],
    how: Tiling | None = None,
) -> tuple[Tensor, Tensor]:
    """y and carry, see `ganglion.ops.dispatch`."""
    call = _Call(x, dt_weight, A, routes, how, backward=False)
    y = torch.empty((call.groups, *x.shape), dtype=x.dtype, device=x.device)
    carry_shape = (call.batch, call.n_routes * call.chunks * call.d_state * call.channels)
    carry = torch.empty(carry_shape, dtype=torch.float32, device=x.device)
    with on_device(x):
        ends = call.segment_ends(x, proj, dt_weight, dt_bias, A, adjoint=False)
        forward_kernel[call.grid(call.groups)](
            x,
            proj,
            dt_weight,
            dt_bias,
            A,
            A if D is None else D,
            ends,
            y,
            carry,
            *call.sizes,
            call.chunks,
            HAS_SKIP=D is not None,
            WALKS=call.tiling.walks,
            CHUNK=CHUNK,
            **OPTIONS,
            **call.constants,
        )
    return merged(y, x.dtype), carry


def backward(
    grad_y: Tensor,
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    carry: Tensor,
    routes: Sequence[int],
    how: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients, see `ganglion.ops.dispatch`."""
    call = _Call(x, dt_weight, A, routes, how, backward=True)
    split = (call.batch, call.segments)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    grad_x = empty(call.groups, *x.shape, dtype=x.dtype)
    grad_proj = empty(call.blocks, *proj.shape)
    rank = dt_weight.shape[2]
    padded_rank = triton.cdiv(rank, call.constants["PIECE"]) * call.constants["PIECE"]
    grad_weight = empty(*split, call.n_routes, call.channels, padded_rank)
    grad_rows = empty(*split, call.n_routes, call.d_state + 2, call.channels)
    with on_device(x):
        ends = call.segment_ends(grad_y, proj, dt_weight, dt_bias, A, adjoint=True)
        backward_kernel[call.grid(call.groups)](
            grad_y,
            x,
            proj,
            dt_weight,
            dt_bias,
            A,
            A if D is None else D,
            carry,
            ends,
            grad_x,
            grad_proj,
            grad_weight,
            grad_rows,
            *call.sizes,
            call.chunks,
            HAS_SKIP=D is not None,
            CHUNK=CHUNK,
            **OPTIONS,
            **call.constants,
        )
    rows = grad_rows.movedim(-2, 0)
    return (
        merged(grad_x, x.dtype),
        merged(grad_proj, x.dtype),
        grad_weight.sum((0, 1))[..., :rank].contiguous(),
        rows[0].sum((0, 1)),
        rows[2:].sum((1, 2)).permute(1, 2, 0).contiguous(),
        None if D is None else rows[1, :, :, 0].sum((0, 1)).repeat(call.n_routes, 1),
    )


def merged(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first axis, in float32 inside; a single part is not copied."""
    return parts[0].to(dtype) if len(parts) == 1 else parts.sum(0).to(dtype)


def on_device(x: Tensor):
    """Launches go to the current device: make it the one of x."""
    return (
        torch.get_device_module(x.device).device(x.device)
        if x.device.type != "cpu"
        else contextlib.nullcontext()
    )
