"""The Triton kernels, run by Triton's interpreter on CPU tensors.

Not collected by name: TRITON_INTERPRET=1 has to be set before triton is imported, and nothing can be compiled in the
same process. `test_triton.py` runs this file in a process of its own; by hand:

    TRITON_INTERPRET=1 python -m pytest tests/ops/triton_interpreted.py
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from ganglion.ops import PATTERNS, Route, pattern, scan2d, scan2d_reference
from ganglion.ops.routes import CHUNK
from ganglion.ops.triton import launch
from ganglion.ops.triton.adjoint import compose_adjoint
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("poison")

NAMES = ("x", "proj", "dt_weight", "dt_bias", "A", "D")
LINES = (Route(restart=True), Route(transpose=True, flip_rows=True, restart=True))
ROUTES = {**PATTERNS, "lines": LINES}
ALL = 10**6  # chunks of a segment: the sequential form
slow_scan = interpreter.ScanOps.generic_scan
slow_call = interpreter.InterpretedFunction.__call__


def fast_scan(self, inputs):
    """The interpreter's scan, a row at a time. Its own goes element by element and takes a thousand times as long."""
    data = [np.moveaxis(x.handle.data, self.axis, 0) for x in inputs]
    found = [np.empty_like(d) for d in data]
    state = None
    for i in range(len(data[0])):
        step = tuple(self.to_tensor(d[i].copy(), x.dtype) for d, x in zip(data, inputs))
        if state is None:
            state = step
        else:
            combined = self.combine_fn.fn(*state, *step)
            state = combined if isinstance(combined, tuple) else (combined,)
        for f, s in zip(found, state):
            f[i] = s.handle.data
    return [self.to_tensor(np.moveaxis(f, 0, self.axis), x.dtype) for f, x in zip(found, inputs)]


def call_directly(self, *args, **kwargs):
    """A device function's call. The interpreter would patch what the kernel's own call has patched already."""
    if self.fn.__module__.startswith("triton."):
        return slow_call(self, *args, **kwargs)
    return self.rewrite()(*args, **kwargs)


@pytest.fixture(autouse=True, scope="session")
def _fast_interpreter():
    patch = pytest.MonkeyPatch()
    patch.setattr(interpreter.ScanOps, "generic_scan", fast_scan)
    patch.setattr(interpreter.InterpretedFunction, "__call__", call_directly)
    yield
    patch.undo()


def inputs(batch, height, width, channels, routes, rank=3, state=1, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return [
        normal(batch, height, width, channels).to(dtype),
        normal(batch, height, width, routes * (rank + 2 * state)).to(dtype),
        normal(routes, channels, rank) * rank**-0.5,
        normal(routes, channels) - 1,
        -normal(routes, channels, state).exp(),
        normal(routes, channels),
    ]


def check(tensors, routes, **how):
    """Forward and every gradient of the kernels against the float64 reference."""
    codes = [route.code for route in routes]
    tiling = launch.Tiling(**{"block_d": 16, "steps": 16, "walks": 1, "segment_chunks": ALL, **how})
    cotangent = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(tensors[0].dtype)
    y, carry = launch.forward(*tensors, codes, tiling)
    grads = launch.backward(cotangent, *tensors, carry, codes, replace(tiling, walks=1))
    exact = [None if t is None else t.double().requires_grad_() for t in tensors]
    expected_y = scan2d_reference(*exact, routes)
    given = [t for t in exact if t is not None]
    expected = iter(torch.autograd.grad(expected_y, given, cotangent.double()))
    assert_close(y, expected_y, tensors[0].dtype, "y")
    for name, tensor, grad in zip(NAMES, tensors, grads):
        if tensor is None:
            assert grad is None
            continue
        assert grad.dtype == tensor.dtype, name
        assert_close(grad, next(expected), tensors[0].dtype, f"gradient of {name}")


@pytest.mark.parametrize(
    ("name", "walks"),
    [("cross2d", 4), ("rot2d", 2), ("bidi", 1), ("unidi", 4), ("ssm", 1), ("bi_ssm", 2), ("lines", 2)],
)
def test_every_pattern_in_the_sequential_form(name, walks):
    routes = ROUTES[name]
    check(inputs(1, 4, 5, 5, len(routes)), routes, walks=walks)


@pytest.mark.parametrize("name", ["cross2d", "rot2d", "lines"])
def test_every_direction_in_the_chunked_form(name):
    routes = ROUTES[name]
    check(inputs(1, 9, 15, 3, len(routes)), routes, steps=64, segment_chunks=1)


@pytest.mark.parametrize(("steps", "segment_chunks"), [(16, 2), (32, 1), (32, ALL)])
def test_tiles_and_segments_of_every_size(steps, segment_chunks):
    check(inputs(2, 11, 13, 3, 2), pattern("bi_ssm"), steps=steps, segment_chunks=segment_chunks)


def test_more_channels_than_a_block():
    check(inputs(2, 3, 7, 37, 1), pattern("ssm"), steps=64)


def test_sizes_that_fill_every_block():
    """No masks. The last chunk is only partly there, although every tile of it that is there is full."""
    check(inputs(1, 5, 16, 16, 1), (Route(transpose=True, flip_cols=True),))


@pytest.mark.parametrize(("state", "segment_chunks"), [(4, ALL), (4, 1), (16, ALL)])
def test_more_states(state, segment_chunks):
    routes = (Route(), Route(transpose=True, restart=True))[: 1 if state == 16 else 2]
    size = (5, 8) if segment_chunks == ALL else (7, 12)
    check(inputs(1, *size, 3, len(routes), state=state), routes, steps=32, segment_chunks=segment_chunks)


def test_a_rank_above_the_smallest_tile():
    for rank, dtype in ((20, torch.float32), (40, torch.float16)):
        check(inputs(1, 3, 7, 5, 2, rank=rank, dtype=dtype), pattern("bi_ssm"), walks=2)


def test_without_skip():
    check([*inputs(1, 3, 7, 5, 2)[:-1], None], pattern("bi_ssm"), walks=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("walks", [1, 2])
def test_half_precision(dtype, walks):
    check(inputs(1, 5, 8, 5, 2, dtype=dtype), pattern("bi_ssm"), walks=walks)


@pytest.mark.parametrize("segment_chunks", [1, ALL])
def test_extremes(segment_chunks):
    """Decays that underflow, and steps on the linear branch of softplus."""
    x, proj, dt_weight, dt_bias, A, D = inputs(1, 7, 12, 4, 2)
    A, dt_bias = A * 100, dt_bias.clone()
    dt_bias[:, 0], dt_bias[:, 1] = 60.0, -40.0
    check([x, proj, dt_weight, dt_bias, A, D], pattern("bi_ssm"), steps=32, segment_chunks=segment_chunks)


def test_addresses_of_64_bits(monkeypatch):
    constants = launch.constants
    monkeypatch.setattr(launch, "constants", lambda **kw: {**constants(**kw), "WIDE": True})
    check(inputs(1, 5, 8, 5, 2), pattern("bi_ssm"), walks=2)


def test_lines_longer_than_the_tile_and_shorter():
    """The multiplication that replaces the division by the length of a line."""
    for size in ((1, 40), (40, 1), (2, 33), (33, 2)):
        check(inputs(1, *size, 2, 2), (Route(), Route(transpose=True, flip_rows=True)), walks=2, steps=64)


def test_carry_is_the_state_before_every_chunk():
    """Of the same shape and meaning in every backend."""
    x, proj, dt_weight, dt_bias, A, D = inputs(1, 9, 15, 3, 2, state=2)
    routes = pattern("bi_ssm")
    codes = [route.code for route in routes]
    tiling = launch.Tiling(block_d=16, steps=64, walks=1, segment_chunks=1)
    carry = launch.forward(x, proj, dt_weight, dt_bias, A, D, codes, tiling)[1]
    expected = torch.ops.ganglion.scan2d(x, proj, dt_weight, dt_bias, A, D, codes, "torch")[1]
    assert carry.shape == (1, 2 * -(-135 // CHUNK) * 2 * 3)
    assert_close(carry, expected)


def test_through_the_operator():
    """`scan2d` reaches these kernels, with autograd, and opcheck holds for it."""
    tensors = [t.requires_grad_() for t in inputs(1, 3, 4, 3, 1)]
    routes = pattern("ssm")
    y = scan2d(*tensors, routes=routes, backend="triton")
    grads = torch.autograd.grad(y.square().sum(), tensors)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = scan2d_reference(*exact, routes)
    for found, wanted in zip(grads, torch.autograd.grad(expected.square().sum(), exact)):
        assert_close(found, wanted)
    torch.use_deterministic_algorithms(False)  # opcheck compares memory that no one has to write
    arguments = (*(t.detach().requires_grad_() for t in tensors), [0], "triton")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.ganglion.scan2d, arguments, test_utils=checks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bytes_are_as_counted(dtype, monkeypatch):
    """Every load and store that the kernels make, against the count that the documentation and benchmarks give."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from gpu_bytes import Shape, requested

    moved = {"read": 0, "written": 0}
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def count(kind, pointers, mask):
        item = np.dtype(interpreter._get_np_dtype(pointers.dtype.scalar.element_ty)).itemsize
        moved[kind] += item * int(np.count_nonzero(mask.data))

    def counted_load(self, ptrs, mask, *args):
        count("read", ptrs, mask)
        return load(self, ptrs, mask, *args)

    def counted_store(self, ptrs, value, mask, *args):
        count("written", ptrs, mask)
        return store(self, ptrs, value, mask, *args)

    monkeypatch.setattr(builder, "create_masked_load", counted_load)
    monkeypatch.setattr(builder, "create_masked_store", counted_store)
    size = (7, 12)
    for state, rank, how in itertools.product(
        [1, 2], [3, 40], [{"walks": 2, "segment_chunks": ALL}, {"walks": 1, "segment_chunks": 1}]
    ):
        shape = Shape(
            batch=1,
            height=size[0],
            width=size[1],
            channels=20,
            n_routes=2,
            dt_rank=rank,
            d_state=state,
            itemsize=dtype.itemsize,
        )
        tiling = launch.Tiling(block_d=16, steps=32, **how)
        tensors = inputs(1, *size, 20, 2, rank=rank, state=state, dtype=dtype)
        codes = [route.code for route in pattern("bi_ssm")]
        moved.update(read=0, written=0)
        carry = launch.forward(*tensors, codes, tiling)[1]
        wanted = requested(shape, tiling, backward=False)
        assert moved == {"read": wanted.read, "written": wanted.written}, (state, rank, how)
        moved.update(read=0, written=0)
        tiling = replace(tiling, walks=1)
        launch.backward(torch.ones_like(tensors[0]), *tensors, carry, codes, tiling)
        wanted = requested(shape, tiling, backward=True)
        assert moved == {"read": wanted.read, "written": wanted.written}, (state, rank, how, "backward")


@triton.jit
def _scan_kernel(x, y, T: tl.constexpr, D: tl.constexpr):
    at = tl.arange(0, T)[:, None] * D + tl.arange(0, D)[None, :]
    a = tl.load(x + at)
    first, product, g = tl.associative_scan((a, a * 0 + 1, a + 1), 0, compose_adjoint, reverse=True)
    tl.store(y + at, first)
    tl.store(y + T * D + at, product)
    tl.store(y + 2 * T * D + at, g)


def test_the_fast_interpreter_scans_as_its_own_does(monkeypatch):
    x = torch.rand(16, 2)
    fast, slow = torch.empty(2, 3, 16, 2)
    _scan_kernel[(1,)](x, fast, T=16, D=2)
    monkeypatch.setattr(interpreter.ScanOps, "generic_scan", slow_scan)
    _scan_kernel[(1,)](x, slow, T=16, D=2)
    assert torch.equal(fast, slow) and not torch.equal(fast[2], fast[0])
