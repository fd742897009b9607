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
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..routes import CHUNK
from .adjoint import backward_kernel
from .kernels import LOG1P_FULL, LOG1P_HALF, forward_kernel, segment_ends_kernel

#: Programs per multiprocessor that a launch should have. Programs are single warps, so this is also about how many of
#: them fit there at once.
FILL = 11
#: Fewer segments than this are slower than none: they cost the recurrence twice, and a launch.
LEAST_SEGMENTS = 4
#: One warp: see `kernels`, which also fetch ahead by themselves. Products and sums are fused, which newer releases of
#: Triton do only where they are asked to.
OPTIONS: dict[str, int | bool] = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
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
    dt_rank: int,
    dtype: torch.dtype,
    processors: int,
    backward: bool,
) -> Tiling:
    """The tiling for a shape on a device of `processors` multiprocessors.

    From a table measured on an H200, which docs/measurements keeps: one route a program is best wherever that fills the
    device, although the maps of the routes are then summed by a launch of their own; only where so many programs are
    left without it that a second round of them is full does a program walk all routes.
    """
    chunks = -(-length // CHUNK)
    fill = FILL * processors

    def programs(block_d: int) -> int:
        return batch * -(-channels // block_d) * n_routes

    # In float32 larger tiles spill, and backward has no registers to spare either: as many channels as lanes.
    block_d, steps, walks = 32, 16, 1
    if not backward and dtype != torch.float32:
        if programs(32) // n_routes >= 2 * fill:
            steps, walks = 32, n_routes
        elif channels % 64 == 0 and programs(64) >= fill:
            block_d = 64  # the projections are read by half as many programs
        elif dt_rank <= 16:
            steps = 32
    segments = min(MAX_SEGMENTS, chunks, -(-fill // programs(block_d)))
    if segments < LEAST_SEGMENTS:
        segments = 1
    return Tiling(block_d=block_d, steps=steps, walks=walks, segment_chunks=-(-chunks // segments))


@functools.cache
def processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).gpu_subslice_count
    return 1


def backend_of(device: torch.device) -> str:
    """The name of the compiler's backend for a device."""
    return "hip" if torch.version.hip else device.type


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


#: Calls that are remembered. A network has a few dozen; what is forgotten is found again.
REMEMBERED = 1024


class _Call:
    """What the launches of one forward or backward call have in common, for all calls of one signature.

    A kernel is launched through Triton's front end once; from then on the compiled kernel is called. What else the
    front end looks at are the alignments of the pointers, which are looked at here in every call.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        parameters: tuple[torch.dtype, ...],  # their dtypes: only told apart
        n_routes: int,
        dt_rank: int,
        d_state: int,
        routes: tuple[int, ...],
        how: Tiling | None,
        has_skip: bool,
        log_A: bool,
        backward: bool,
    ):
        self.batch, self.height, self.width, self.channels = self.shape = shape
        self.length = self.height * self.width
        self.n_routes, self.d_state = n_routes, d_state
        self.has_skip, self.log_A = has_skip, log_A
        self.chunks = -(-self.length // CHUNK)
        self.tiling = how or tiling(
            batch=self.batch,
            length=self.length,
            channels=self.channels,
            n_routes=n_routes,
            dt_rank=dt_rank,
            dtype=dtype,
            processors=processors(device),
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
        self.groups = n_routes // self.tiling.walks
        self.blocks = -(-self.channels // self.tiling.block_d)
        self.sizes = (*self.shape, self.segments, self.tiling.segment_chunks * CHUNK)
        self.ends_shape = (self.batch, n_routes, self.segments, 2, d_state, self.channels)
        self.carry_shape = (self.batch, n_routes * self.chunks * d_state * self.channels)
        self.constants = constants(
            dtype=dtype,
            length=self.length,
            channels=self.channels,
            n_routes=n_routes,
            d_state=d_state,
            dt_rank=dt_rank,
            routes=routes,
            steps=self.tiling.steps,
            block_d=self.tiling.block_d,
            backend=backend_of(device),
            backward=backward,
        )
        self.compiled: dict[tuple, object] = {}

    def launch(
        self,
        kernel: triton.JITFunction,
        groups: int,
        tensors: Sequence[Tensor],
        numbers: Sequence[int],
        **special: object,
    ) -> None:
        """Launch a kernel with `groups` groups of routes; `special` are compile-time arguments of this kernel only."""
        grid = (self.batch * self.blocks * groups * self.segments, 1, 1)
        key = (kernel.__name__, *[t.data_ptr() % 16 == 0 for t in tensors])
        compiled = self.compiled.get(key)
        if compiled is None:
            compiled = kernel[grid](*tensors, *numbers, **special, **OPTIONS, **self.constants)
            if compiled is not None:  # the interpreter gives nothing
                given = {**special, **self.constants}
                rest = [given[name] for name in kernel.arg_names[len(tensors) + len(numbers) :]]
                self.compiled[key] = (compiled, rest)
        else:
            compiled, rest = compiled
            compiled[grid](*tensors, *numbers, *rest)

    def segment_ends(
        self, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, adjoint: bool
    ) -> Tensor:
        """What segments do to the state, (B, K, segments, 2, N, D); an unread placeholder if there is one segment."""
        if self.segments == 1:
            return A
        ends = torch.empty(self.ends_shape, dtype=torch.float32, device=x.device)
        tensors = (x, proj, dt_weight, dt_bias, A, ends)
        self.launch(
            segment_ends_kernel, self.n_routes, tensors, self.sizes, ADJOINT=adjoint, LOG_A=self.log_A
        )
        return ends


_remembered = functools.lru_cache(maxsize=REMEMBERED)(_Call)


def _call(
    x: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor, Tensor | None],
    routes: Sequence[int],
    how: Tiling | None,
    log_A: bool,
    backward: bool,
) -> _Call:
    dt_weight, _, A, D = parameters
    n_routes, _, d_state = A.shape
    dtypes = tuple(None if t is None else t.dtype for t in parameters)
    rank = dt_weight.shape[2]
    return _remembered(
        x.shape, x.dtype, x.device, dtypes, n_routes, rank, d_state, tuple(routes), how, D is not None, log_A,
        backward,
    )  # fmt: skip


def forward(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    routes: Sequence[int],
    how: Tiling | None = None,
    *,
    log_A: bool = False,
) -> tuple[Tensor, Tensor]:
    """y and carry, see `ganglion.ops.dispatch`."""
    call = _call(x, (dt_weight, dt_bias, A, D), routes, how, log_A, backward=False)
    y = torch.empty((call.groups, *call.shape), dtype=x.dtype, device=x.device)
    carry = torch.empty(call.carry_shape, dtype=torch.float32, device=x.device)
    with on_device(x):
        ends = call.segment_ends(x, proj, dt_weight, dt_bias, A, adjoint=False)
        call.launch(
            forward_kernel,
            call.groups,
            (x, proj, dt_weight, dt_bias, A, A if D is None else D, ends, y, carry),
            (*call.sizes, call.chunks),
            HAS_SKIP=call.has_skip,
            LOG_A=log_A,
            WALKS=call.tiling.walks,
            CHUNK=CHUNK,
        )
    return merged(y), carry


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
    *,
    log_A: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients, see `ganglion.ops.dispatch`."""
    given = A
    if log_A:  # not in the kernel, which has no register left for it
        A = -torch.exp(A.to(torch.float32))
    call = _call(x, (dt_weight, dt_bias, A, D), routes, how, False, backward=True)
    split = (call.batch, call.segments)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    grad_x = empty(call.groups, *x.shape, dtype=x.dtype)
    # One part for every block of channels: in float32 they would be the largest tensor of a network's last stage.
    grad_proj = empty(call.blocks, *proj.shape, dtype=x.dtype)
    rank = dt_weight.shape[2]
    padded_rank = triton.cdiv(rank, call.constants["PIECE"]) * call.constants["PIECE"]
    grad_weight = empty(*split, call.n_routes, call.channels, padded_rank)
    grad_rows = empty(*split, call.n_routes, call.d_state + 2, call.channels)
    with on_device(x):
        ends = call.segment_ends(grad_y, proj, dt_weight, dt_bias, A, adjoint=True)
        skip = A if D is None else D
        tensors = (grad_y, x, proj, dt_weight, dt_bias, A, skip, carry, ends)
        call.launch(
            backward_kernel,
            call.groups,
            (*tensors, grad_x, grad_proj, grad_weight, grad_rows),
            (*call.sizes, call.chunks),
            HAS_SKIP=call.has_skip,
            CHUNK=CHUNK,
        )
    weight, rows = grad_weight.sum((0, 1)), grad_rows.sum((0, 1))
    grad_A = rows[:, 2:].transpose(1, 2).contiguous()
    if log_A:
        grad_A *= A
    return (
        merged(grad_x),
        merged(grad_proj),
        weight[..., :rank].contiguous().to(dt_weight.dtype),
        rows[:, 0].to(dt_bias.dtype, copy=True),
        grad_A.to(given.dtype),
        None if D is None else rows[0, 1].to(D.dtype).repeat(call.n_routes, 1),
    )


def merged(parts: Tensor) -> Tensor:
    """The sum over the first axis, in float32 inside; a single part is not copied."""
    return (
        parts[0] if len(parts) == 1 else torch.sum(parts, 0, dtype=parts.dtype)
    )  # as it is under autocast too


_HERE = contextlib.nullcontext()


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Launches go to the current device: make it the one of x."""
    if x.device.type == "cpu":
        return _HERE
    module = torch.cuda if x.device.type == "cuda" else torch.get_device_module(x.device)
    return _HERE if x.device.index == module.current_device() else module.device(x.device)
