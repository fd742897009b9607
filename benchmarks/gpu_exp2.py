"""A kernel that does nothing but take powers of two: the rate of the special-function unit. Used by gpu_op.py."""

from __future__ import annotations

import triton
import triton.language as tl

ROUNDS = 1024
#: Elements of a program of four warps: eight independent chains a thread.
THREADS = 1024


@triton.jit
def exp2_kernel(out, ROUNDS: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = at.to(tl.float32) * 1e-3
    for _ in range(ROUNDS):
        x = tl.exp2(-x)  # tends to 0.64: neither zero nor infinite
    tl.store(out + tl.program_id(0) * SIZE + at, x)
