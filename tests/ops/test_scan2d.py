from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from ganglion.ops import PATTERNS, Route, pattern, scan2d, scan2d_reference
from ganglion.ops.dispatch import BACKENDS
from tests.tolerances import RELATIVE_RMS, assert_close

NAMES = ("x", "proj", "dt_weight", "dt_bias", "A", "D")
BACKEND_NAMES = [
    pytest.param(
        name, marks=pytest.mark.skipif(BACKENDS[name].unavailable() is not None, reason="not available here")
    )
    for name in ("cpu", "torch")
]
LINES = (Route(restart=True), Route(transpose=True, flip_rows=True, restart=True))
ROUTES = {**PATTERNS, "lines": LINES}


def inputs(batch=2, height=5, width=7, channels=6, routes=4, rank=2, state=1, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    work = torch.promote_types(dtype, torch.float32)
    tensors = (
        normal(batch, height, width, channels).to(dtype),
        normal(batch, height, width, routes * (rank + 2 * state)).to(dtype),
        (normal(routes, channels, rank) * rank**-0.5).to(work),
        (normal(routes, channels) - 1).to(work),
        -normal(routes, channels, state).exp().to(work),
        normal(routes, channels).to(work),
    )
    return [t.requires_grad_() for t in tensors]


def exact(tensors):
    return [t.detach().double().requires_grad_() for t in tensors]


def run(function, tensors, routes, cotangent, **kwargs):
    y = function(*tensors, routes=routes, **kwargs)
    grads = torch.autograd.grad(y, tensors, cotangent.to(y.dtype))
    return dict(zip(("y", *NAMES), (y, *grads), strict=True))


def check(tensors, routes, backend):
    """Forward and every gradient against the float64 reference."""
    cotangent = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cotangent = cotangent.to(tensors[0].dtype)
    found = run(scan2d, tensors, routes, cotangent, backend=backend)
    expected = run(scan2d_reference, exact(tensors), routes, cotangent)
    for name, tensor in found.items():
        assert_close(tensor, expected[name], tensors[0].dtype, name)
    return found


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("name", ROUTES)
def test_every_pattern_equals_the_reference(name, backend):
    routes = ROUTES[name]
    check(inputs(routes=len(routes)), routes, backend)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("state", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_and_state_equals_the_reference(dtype, state, backend):
    check(inputs(state=state, dtype=dtype), pattern("cross2d"), backend)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (7, 1), (9, 7), (14, 14), (20, 25)])
def test_every_length_equals_the_reference(size, backend):
    check(inputs(batch=1, height=size[0], width=size[1], channels=3), pattern("cross2d"), backend)


def test_float64_equals_the_reference():
    check(inputs(dtype=torch.float64, state=3), pattern("rot2d"), "torch")


@pytest.mark.parametrize("state", [1, 2])
def test_gradcheck(state):
    tensors = inputs(batch=1, height=3, width=2, channels=2, state=state, dtype=torch.float64)
    assert gradcheck(lambda *t: scan2d(*t, routes=pattern("cross2d"), backend="torch"), tensors)


def test_gradcheck_with_restarts():
    tensors = inputs(batch=1, height=3, width=2, channels=2, routes=2, dtype=torch.float64)
    assert gradcheck(lambda *t: scan2d(*t, routes=LINES, backend="torch"), tensors)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_opcheck(backend, skip):
    tensors = inputs(batch=1, height=3, width=4)
    if not skip:
        tensors[-1] = None
    codes = [route.code for route in pattern("cross2d")]
    torch.library.opcheck(torch.ops.ganglion.scan2d, (*tensors, codes, backend))


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_opcheck_of_half_precision_in_other_memory(backend):
    """The carry has a precision of its own, and no result has the strides of x."""
    tensors = inputs(batch=1, height=3, width=4, dtype=torch.bfloat16)
    tensors[0] = tensors[0].detach().mT.contiguous().mT.requires_grad_()
    codes = [route.code for route in pattern("cross2d")]
    torch.library.opcheck(torch.ops.ganglion.scan2d, (*tensors, codes, backend))


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_every_gradient_has_memory_of_its_own(backend):
    """The routes' gradients of D are equal; changing one must not change another."""
    tensors = inputs()
    grads = torch.autograd.grad(scan2d(*tensors, routes=pattern("cross2d"), backend=backend).sum(), tensors)
    for name, grad in zip(NAMES, grads, strict=True):
        others = grad[1:].clone()
        grad[0] += 1
        assert torch.equal(grad[1:], others), name


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_without_skip(backend):
    tensors = inputs()
    y = scan2d(*tensors[:5], None, routes=pattern("cross2d"), backend=backend)
    assert_close(y, scan2d_reference(*exact(tensors)[:5], None, pattern("cross2d")))


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_strong_decay_and_large_steps_stay_finite(scale, backend):
    tensors = inputs(height=9, width=9)
    with torch.no_grad():
        tensors[4].mul_(scale)
        tensors[3].add_(30)
    found = check(tensors, pattern("cross2d"), backend)
    assert all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_travel_along_the_walk(value, backend):
    tensors = [t.detach() for t in inputs(batch=2, height=4, width=4)]
    tensors[0][0, 2, 1, 3] = value
    y = scan2d(*tensors, routes=pattern("ssm") * 4, backend=backend)
    bad = ~y.isfinite()
    assert bad[0, 2, 1:, 3].all() and bad[0, 3, :, 3].all()
    bad[0, :, :, 3] = False
    assert not bad.any()


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0)])
def test_empty_inputs_give_empty_outputs_and_zero_gradients(shape, backend):
    tensors = inputs(*shape)
    y = scan2d(*tensors, routes=pattern("cross2d"), backend=backend)
    assert y.shape == tensors[0].shape
    grads = torch.autograd.grad(y.sum(), tensors)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, tensors, strict=True))


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_inputs_need_not_be_contiguous(backend):
    tensors = inputs()
    strided = [t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for t in tensors]
    assert not strided[0].is_contiguous()
    check(strided, pattern("cross2d"), backend)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_tokens_are_scanned_as_the_map_of_their_size(backend, skip):
    tensors = inputs(batch=2, height=3, width=5)
    if not skip:
        tensors[-1] = None
    tokens = [t.detach().flatten(1, 2).requires_grad_() for t in tensors[:2]] + tensors[2:]
    codes = [route.code for route in pattern("cross2d")]
    y, carry = torch.ops.ganglion.scan2d(*tensors, codes, backend)
    found, found_carry = torch.ops.ganglion.scan2d(*tokens, codes, backend, [3, 5])
    assert torch.equal(found, y.flatten(1, 2)) and torch.equal(found_carry, carry)
    cotangent = torch.randn(y.shape)
    grads = torch.autograd.grad(y, [t for t in tensors if t is not None], cotangent)
    found = torch.autograd.grad(found, [t for t in tokens if t is not None], cotangent.flatten(1, 2))
    assert all(torch.equal(a, b.view(a.shape)) for a, b in zip(grads, found, strict=True))
    torch.library.opcheck(torch.ops.ganglion.scan2d, (*tokens, codes, backend, [3, 5]))


def test_tokens_that_are_not_a_map_of_that_size_are_refused():
    tensors = inputs(batch=1, height=3, width=5)
    tokens = [t.flatten(1, 2) for t in tensors[:2]] + tensors[2:]
    for size in ([3, 4], [15], [1, 3, 5]):
        with pytest.raises(ValueError, match=r"expected \(B, H \* W, D\) and \[H, W\]"):
            torch.ops.ganglion.scan2d(*tokens, [0, 1, 6, 7], "torch", size)
    with pytest.raises(ValueError, match=r"expected \(B, H, W, D\)"):
        torch.ops.ganglion.scan2d(*tokens, [0, 1, 6, 7], "torch")


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_two_runs_are_equal(backend):
    tensors, cotangent = inputs(height=13, width=11), torch.ones(2, 13, 11, 6)
    first, second = (run(scan2d, tensors, pattern("cross2d"), cotangent, backend=backend) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("state", [1, 3])
def test_carries_are_the_states_before_each_chunk(state, backend):
    tensors = [t.detach() for t in inputs(batch=1, height=12, width=13, state=state)]
    codes = [route.code for route in pattern("cross2d")]
    _, carry = torch.ops.ganglion.scan2d(*tensors, codes, backend)
    _, exact_carry = torch.ops.ganglion.scan2d(*[t.double() for t in tensors], codes, "torch")
    assert carry.shape == (1, 4 * 3 * state * 6)
    assert not carry.view(4, 3, state, 6)[:, 0].any()
    assert_close(carry, exact_carry)


class Scan(nn.Module):
    def forward(self, x, proj, dt_weight, dt_bias, A, D):
        return torch.ops.ganglion.scan2d(x, proj, dt_weight, dt_bias, A, D, [0, 1, 6, 7], "auto")[0]


def test_compiles_without_a_break_for_any_batch_and_size():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *t: scan2d(*t, routes=pattern("cross2d")), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for shape in [(2, 5, 7), (3, 6, 4), (1, 9, 8)]:
        tensors = inputs(*shape)
        cotangent = torch.ones_like(tensors[0])
        y = compiled(*tensors)
        grads = torch.autograd.grad(y, tensors, cotangent)
        expected = run(scan2d, tensors, pattern("cross2d"), cotangent)
        for name, found in zip(("y", *NAMES), (y, *grads), strict=True):
            torch.testing.assert_close(found, expected[name])


def test_exports_with_dynamic_batch_and_size():
    tensors = [t.detach() for t in inputs()]
    sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(
        Scan(), tuple(tensors), dynamic_shapes=(sizes, sizes, None, None, None, None)
    )
    other = [t.detach() for t in inputs(3, 6, 4)]
    torch.testing.assert_close(program.module()(*other), Scan()(*other))


def test_scripts_and_traces():
    tensors = [t.detach() for t in inputs()]
    expected = Scan()(*tensors)
    assert torch.equal(torch.jit.script(Scan())(*tensors), expected)
    assert torch.equal(torch.fx.symbolic_trace(Scan())(*tensors), expected)


def test_memory_of_a_training_step_is_linear_and_below_a_copy_per_route():
    """What the graph keeps: the inputs, which are there anyway, and one state in CHUNK steps."""
    kept = []
    tensors = inputs(batch=1, height=32, width=32, channels=64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        scan2d(*tensors, routes=pattern("cross2d"))
    own = {t.data_ptr() for t in tensors}
    extra = sum(t.numel() for t in kept if t.data_ptr() not in own)
    assert extra <= tensors[0].numel() // 8


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("x", torch.zeros(2, 5, 7), ValueError, r"x has shape \(2, 5, 7\): expected \(B, H, W, D\)"),
        ("proj", torch.zeros(2, 5, 7, 15), ValueError, r"proj has shape .*expected \(2, 5, 7, 16\)"),
        (
            "proj",
            torch.zeros(2, 5, 7, 16).bfloat16(),
            TypeError,
            "proj has dtype torch.bfloat16, x torch.float32",
        ),
        ("dt_weight", torch.zeros(4, 6), ValueError, "dt_weight has shape"),
        ("dt_weight", torch.zeros(3, 6, 2), ValueError, "dt_weight has shape"),
        ("dt_bias", torch.zeros(4, 5), ValueError, r"dt_bias has shape \(4, 5\): expected \(4, 6\)"),
        ("A", torch.zeros(4, 6, 0), ValueError, "d_state 0"),
        ("D", torch.zeros(4, 6, device="meta"), ValueError, "D is on meta, x on cpu"),
        ("x", torch.zeros(2, 5, 7, 6, dtype=torch.int64), TypeError, "torch.int64"),
    ],
)
def test_wrong_arguments_are_named(name, value, error, message):
    arguments = dict(zip(NAMES, inputs(), strict=True)) | {name: value}
    with pytest.raises(error, match=message):
        scan2d(**arguments, routes=pattern("cross2d"))


def test_routes_must_be_routes():
    tensors = inputs()
    with pytest.raises(TypeError, match=r"use pattern\('cross2d'\)"):
        scan2d(*tensors, routes="cross2d")
    with pytest.raises(ValueError, match="routes is empty"):
        scan2d(*tensors, routes=[])


def test_the_table_of_tolerances_is_tight():
    """A scan whose step is 1 % off, or with two routes swapped, misses the float32 bound by far."""
    tensors = inputs()
    expected = scan2d_reference(*exact(tensors), pattern("cross2d"))
    swapped = [pattern("cross2d")[k] for k in (1, 0, 2, 3)]
    for wrong in (
        scan2d(*tensors[:2], tensors[2] * 1.01, *tensors[3:], routes=pattern("cross2d")),
        scan2d(*tensors, routes=swapped),
    ):
        error = (wrong - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error > 100 * RELATIVE_RMS[torch.float32]
