"""How the kernels of the 1-D scan are launched: shapes to a split, a split to grids and buffers.

Two parallel forms, as of the 2-D scan: a program walks all steps of its channels, or, where that gives too few
programs, a segment of them. The chunked form takes three launches: what each segment does to the state, what thus
enters each, and the scan from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..routes import CHUNK
from .kernels import LN2, LOG1P_FULL, LOG1P_HALF
from .launch import OPTIONS, backend_of, on_device, precision, processors
from .selective_scan_adjoint import backward_kernel
from .selective_scan_kernels import forward_kernel, join_kernel, segment_kernel

#: Programs per multiprocessor that are enough: single warps, one for each of its schedulers.
FILL = 4
#: `join_kernel` goes through the segments one after another.
MAX_SEGMENTS = 128
#: Elements of a program of it.
JOIN = 128


@dataclass(frozen=True, kw_only=True)
class Split:
    """How one call is split into programs.

    block_d: channels of a program, a power of two of at least 16.
    steps: steps of a tile, a power of two of at least 16 that divides CHUNK.
    walks: blocks of channels that a program of the backward pass walks one after another; 1 in the forward pass.
    segment_chunks: chunks of CHUNK steps in a segment; the sequential form has one segment.
    """

    block_d: int
    steps: int
    walks: int
    segment_chunks: int


def split(
    *,
    batch: int,
    groups: int,
    group_channels: int,
    length: int,
    d_state: int,
    processors: int,
    backward: bool,
) -> Split:
    """The split for a shape on a device of `processors` multiprocessors."""
    block_d, steps = 32, 16
    blocks = -(-group_channels // block_d)
    walks = 1
    if backward:
        # Every slice of blocks has gradients of B and C of its own. Together they take no more memory than u does in
        # float32, or than one slice's.
        walks = min(blocks, -(-2 * d_state // block_d))
    programs = batch * groups * -(-blocks // walks)
    chunks = -(-length // CHUNK)
    # Segments cost the recurrence twice, so that two of them gain nothing.
    segments = min(MAX_SEGMENTS, chunks, FILL * processors // programs)
    segment_chunks = -(-chunks // segments) if segments > 2 else chunks
    return Split(block_d=block_d, steps=steps, walks=walks, segment_chunks=segment_chunks)


def constants(
    *,
    dtype: torch.dtype,
    length: int,
    group_channels: int,
    stride: int,
    alike: bool,
    softplus: bool,
    how: Split,
    constant_B: bool,
    constant_C: bool,
    has_gate: bool,
    has_skip: bool,
    has_bias: bool,
    backend: str,
) -> dict[str, object]:
    """The compile-time arguments of the kernels.

    stride: the largest of a step or channel. alike: all sequences have the same, as tensors without gaps have them.
    """
    even_d = group_channels % (how.block_d * how.walks) == 0
    return {
        "WALKS": how.walks,
        "HAS_GATE": has_gate,
        "HAS_SKIP": int(has_skip),
        "HAS_BIAS": int(has_bias),
        "SOFTPLUS": softplus,
        "CONSTANT_B": constant_B,
        "CONSTANT_C": constant_C,
        "T": how.steps,
        "BLOCK_D": how.block_d,
        "CHUNK": CHUNK,
        "COEFFICIENTS": (LOG1P_FULL if dtype == torch.float32 else LOG1P_HALF).value,
        "PRECISION": precision(dtype, backend),
        "EVEN_D": even_d,
        "EVEN": even_d and length % how.steps == 0,
        "WIDE": stride * max(how.block_d, how.steps) >= 2**31,
        "ALIKE": alike,
    }


class _Call:
    """What the launches of one forward or backward call have in common."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        bias: Tensor | None,
        softplus: bool,
        how: Split | None,
        grad_y: Tensor | None = None,
    ):
        self.u, self.delta, self.z = u, delta, z
        self.batch, self.channels, self.length = u.shape
        self.states = A.shape[1]
        # As the kernels read them: lanes, that is channels, lie side by side.
        self.A = torch.cat([A.mT, *(t[None] for t in (bias, D) if t is not None)])
        self.B, self.C = _weights(B), _weights(C)
        self.groups = next((t.shape[1] for t in (B, C) if t.ndim == 4), 1)
        self.chunks = -(-self.length // CHUNK)
        group_channels = self.channels // self.groups
        self.split = how or split(
            batch=self.batch,
            groups=self.groups,
            group_channels=group_channels,
            length=self.length,
            d_state=self.states,
            processors=processors(u.device),
            backward=grad_y is not None,
        )
        self.blocks = -(-group_channels // self.split.block_d)
        self.slices = -(-self.blocks // self.split.walks)
        self.segments = -(-self.chunks // self.split.segment_chunks)
        self.parallel = (self.segments, self.split.segment_chunks * CHUNK)
        sequences = [t for t in (u, delta, z, grad_y) if t is not None]
        self.constants = constants(
            dtype=u.dtype,
            length=self.length,
            group_channels=group_channels,
            stride=max(s for t in (*sequences, B, C) for s in t.stride()[1:]),
            alike=all(t.stride()[1:] == (self.length, 1) for t in sequences),
            softplus=softplus,
            how=self.split,
            constant_B=B.ndim == 2,
            constant_C=C.ndim == 2,
            has_gate=z is not None,
            has_skip=D is not None,
            has_bias=bias is not None,
            backend=backend_of(u.device),
        )

    def empty(self, *shape: int) -> Tensor:
        return self.A.new_empty(shape)

    def constants_of(self, kernel: triton.JITFunction) -> dict[str, object]:
        return {name: value for name, value in self.constants.items() if name in kernel.arg_names}

    def entering(self, first: Tensor | None, x: Tensor, adjoint: bool) -> Tensor:
        """What enters each segment, (B, segments, N, D): states, or gradients of states if adjoint.

        first: what enters the first one to be walked, (B, D, N). x: u, or the gradient of y.
        """
        size = (self.batch, self.states, self.channels)
        first = (
            self.A.new_zeros(size) if first is None else first.mT.clone(memory_format=torch.contiguous_format)
        )
        if self.segments == 1:
            return first[:, None]
        state = self.empty(self.batch, self.segments, self.states, self.channels)
        total = self.empty(self.batch, self.segments, self.channels)
        weight = self.C if adjoint else self.B
        z = x if self.z is None else self.z
        shared = self.constants_of(segment_kernel)
        shared["EVEN_D"] = self.channels // self.groups % self.split.block_d == 0
        segment_kernel[(self.batch * self.groups * self.blocks * self.segments,)](
            *(x, self.delta, z, weight, self.A, state, total),
            *(x.stride(), self.delta.stride(), z.stride(), weight.stride()),
            *(self.length, self.channels, self.groups, self.states, *self.parallel),
            ADJOINT=adjoint,
            CONSTANT=weight.ndim == 2,
            **OPTIONS,
            **shared,
        )
        join_kernel[(self.batch * triton.cdiv(self.states * self.channels, JOIN),)](
            *(first, self.A, total, state, self.channels, self.states, self.segments),
            ADJOINT=adjoint,
            BLOCK=JOIN,
            **OPTIONS,
        )
        return state


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    softplus: bool,
    how: Split | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state and carry, see `ganglion.ops.dispatch`."""
    call = _Call(u, delta, A, B, C, D, z, delta_bias, softplus, how)
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    carry = call.empty(call.batch, call.chunks, call.states, call.channels)
    gate = u if z is None else z
    with on_device(u):
        state = call.entering(initial_state, u, adjoint=False)
        forward_kernel[(call.batch * call.groups * call.blocks * call.segments,)](
            *(u, delta, call.B, call.C, gate, call.A, y, state, carry),
            *(t.stride() for t in (u, delta, call.B, call.C, gate, y)),
            *(call.length, call.channels, call.groups, call.states, *call.parallel, call.chunks),
            **OPTIONS,
            **call.constants_of(forward_kernel),
        )
    return y, state[:, -1].mT.contiguous(), carry


def backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    carry: Tensor,
    softplus: bool,
    how: Split | None = None,
) -> tuple[Tensor | None, ...]:
    """The gradients, see `ganglion.ops.dispatch`."""
    call = _Call(u, delta, A, B, C, D, z, delta_bias, softplus, how, grad_y)
    parts = (call.batch, call.segments)
    rows = (*parts, call.states, call.channels)
    partial = (call.slices, call.batch, call.groups, call.states, call.length)
    grad_u, grad_delta, grad_z = (
        None if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (u, delta, z)
    )
    grad_A = call.empty(*rows)
    grad_B, grad_C = (call.empty(*(rows if t.ndim == 2 else partial)) for t in (B, C))
    grad_rows = call.empty(*parts, 2, call.channels)
    programs = call.batch * call.groups * call.slices * call.segments
    scratch = call.empty(programs, call.states, CHUNK // call.split.steps + 4, call.split.block_d)
    gate = u if z is None else z
    with on_device(u):
        adjoint = call.entering(grad_last_state, grad_y, adjoint=True)
        backward_kernel[(programs,)](
            *(grad_y, u, delta, call.B, call.C, gate, call.A),
            *(carry.contiguous(), scratch, adjoint, grad_u, grad_delta, grad_u if grad_z is None else grad_z),
            *(grad_A, grad_B, grad_C, grad_rows),
            *(t.stride() for t in (grad_y, u, delta, call.B, call.C, gate, grad_u)),
            *(call.batch, call.length, call.channels, call.groups, call.states, call.slices),
            *(*call.parallel, call.chunks),
            **OPTIONS,
            **call.constants_of(backward_kernel),
        )
    grad_skip, grad_bias = grad_rows.sum((0, 1))
    return (
        grad_u,
        grad_delta,
        (grad_A.sum((0, 1)) * LN2.value).mT.contiguous(),
        *(
            (grad.sum((0, 1)).mT.contiguous() if t.ndim == 2 else grad.sum(0)).to(t.dtype)
            for grad, t in ((grad_B, B), (grad_C, C))
        ),
        None if D is None else grad_skip,
        grad_z,
        None if delta_bias is None else grad_bias,
        None if initial_state is None else adjoint[:, 0].mT.contiguous(),
    )


def _weights(B: Tensor) -> Tensor:
    """B or C as the kernels read it: constant (N, D) float32, or else as it is."""
    return B.mT.float().contiguous() if B.ndim == 2 else B
