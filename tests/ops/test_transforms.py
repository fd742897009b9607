"""The operators under PyTorch's transformations, against loops, finite differences and the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, functional, gradcheck, gradgradcheck
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from ganglion.ops import Route, pattern, scan2d, scan2d_reference
from ganglion.ops.dispatch import BACKENDS
from tests.tolerances import RELATIVE_RMS_COMPOSED

pytestmark = pytest.mark.filterwarnings("ignore:ganglion. scan2d runs on the slower backend")

BACKEND_NAMES = [
    pytest.param(
        name, marks=pytest.mark.skipif(BACKENDS[name].unavailable() is not None, reason="not available here")
    )
    for name in ("cpu", "torch")
]
CROSS = pattern("cross2d")
LINES = (Route(restart=True), Route(transpose=True, flip_rows=True, restart=True))
EVERY = (0, 1, 2, 3, 4, 5)


def inputs(
    batch=2, height=2, width=3, channels=3, routes=4, rank=2, state=1, dtype=torch.float64, seed=0, skip=True
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    tensors = [
        normal(batch, height, width, channels),
        normal(batch, height, width, routes * (rank + 2 * state)),
        normal(routes, channels, rank),
        normal(routes, channels) - 1,
        -normal(routes, channels, state).exp(),
        normal(routes, channels),
    ]
    return tensors if skip else tensors[:5]


def scan(routes=CROSS, backend="auto"):
    """`scan2d` and its reference in float64 as functions of tensors, D among them or not."""

    def function(*tensors: Tensor) -> Tensor:
        return scan2d(*tensors, routes=routes, backend=backend)

    def reference(*tensors: Tensor) -> Tensor:
        doubles = [t.double() for t in tensors]
        return scan2d_reference(*doubles[:5], doubles[5] if len(doubles) > 5 else None, routes)

    return function, reference


def energy(function):
    return lambda *tensors: function(*tensors).square().sum()


def assert_equal(found, expected, bound=RELATIVE_RMS_COMPOSED[torch.float64]):
    found, expected = tree_leaves(found), tree_leaves(expected)
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        error = float((a.detach().double() - b.detach()).norm() / b.detach().norm().clamp(min=1e-6))
        assert error <= bound, f"{i}: relative error {error:.1e}"


def transposed_product(function, tensors, tangents) -> Tensor:
    """J v by reverse mode twice, which needs no rule for forward mode."""
    return functional.jvp(function, tuple(tensors), tuple(tangents))[1]


FORMS = {
    "cross2d": {},
    "d_state 3": {"state": 3},
    "restarts": {"routes": LINES},
    "without D": {"skip": False},
    "one pixel": {"height": 1, "width": 1},
    "float32": {"dtype": torch.float32},
}


@pytest.fixture(params=FORMS)
def form(request):
    """A function, its reference, its arguments, others like them, and the bound for errors."""
    arguments = dict(FORMS[request.param])
    routes = arguments.pop("routes", CROSS)
    first, other = (inputs(routes=len(routes), seed=seed, **arguments) for seed in (0, 1))
    return *scan(routes), first, other, RELATIVE_RMS_COMPOSED[first[0].dtype]


def test_forward_mode_equals_reverse_mode(form):
    function, reference, tensors, tangents, bound = form
    expected = transposed_product(reference, tensors, tangents)
    assert_equal(jvp(function, tuple(tensors), tuple(tangents))[1], expected, bound)
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(tensors, tangents, strict=True)]
        assert_equal(forward_ad.unpack_dual(function(*duals)).tangent, expected, bound)
    assert_equal(linearize(function, *tensors)[1](*tangents), expected, bound)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("place", EVERY)
def test_one_argument_alone_may_have_a_tangent(place, backend):
    dtype = torch.float64 if backend == "torch" else torch.float32
    tensors, tangent = inputs(dtype=dtype), inputs(dtype=dtype, seed=1)[place]
    function, reference = scan(backend=backend)

    def alone(function):
        return lambda t: function(*tensors[:place], t, *tensors[place + 1 :])

    expected = transposed_product(alone(reference), (tensors[place],), (tangent,))
    assert_equal(
        jvp(alone(function), (tensors[place],), (tangent,))[1], expected, RELATIVE_RMS_COMPOSED[dtype]
    )


def test_gradients_and_jacobians(form):
    function, reference, tensors, _, bound = form
    places = tuple(range(len(tensors)))
    assert_equal(grad(energy(function), places)(*tensors), grad(energy(reference), places)(*tensors), bound)
    small = [t[:1] if i < 2 else t for i, t in enumerate(tensors)]
    expected = functional.jacobian(reference, tuple(small))
    assert_equal(jacrev(function, places)(*small), expected, bound)
    assert_equal(jacfwd(function, places)(*small), expected, bound)
    assert_equal(functional.jacobian(function, tuple(small), vectorize=True), expected, bound)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("mapped", [*((i,) for i in EVERY), (0, 1), (0, 4), EVERY], ids=str)
def test_vmap_equals_a_loop(mapped, axis, backend):
    dtype = torch.float64 if backend == "torch" else torch.float32
    function, _ = scan(backend=backend)
    fixed = inputs(dtype=dtype)
    examples = [inputs(dtype=dtype, seed=seed) for seed in (1, 2, 3)]
    stacked = [torch.stack([e[i] for e in examples], axis) if i in mapped else fixed[i] for i in EVERY]
    in_dims = tuple(axis if i in mapped else None for i in EVERY)
    loop = [[e[i] if i in mapped else fixed[i] for i in EVERY] for e in examples]
    assert_equal(vmap(function, in_dims)(*stacked), torch.stack([function(*a) for a in loop]), 1e-6)
    gradients = [grad(energy(function), EVERY)(*a) for a in loop]
    assert_equal(
        vmap(grad(energy(function), EVERY), in_dims)(*stacked),
        [torch.stack(g) for g in zip(*gradients, strict=True)],
        1e-6,
    )


def test_examples_are_mapped_in_one_call(monkeypatch):
    """Where only the images differ."""
    calls = []
    module = BACKENDS["torch"].scan2d
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda *a: calls.append(a[0].shape) or forward(*a))
    tensors = inputs(batch=3)
    function, _ = scan(backend="torch")
    vmap(lambda x, proj: function(x[None], proj[None], *tensors[2:]))(*tensors[:2])
    assert calls == [tensors[0].shape]


def test_transformations_stack():
    function, reference = scan()
    tensors = inputs(batch=3, height=2, width=2, channels=2)

    def one(function):
        return lambda x, proj: energy(function)(x[None], proj[None], *tensors[2:])

    loop = [hessian(one(reference), (0, 1))(x, proj) for x, proj in zip(*tensors[:2], strict=True)]
    expected = [torch.stack(h) for h in zip(*(tree_leaves(h) for h in loop), strict=True)]
    assert_equal(vmap(hessian(one(function), (0, 1)))(*tensors[:2]), expected)
    assert_equal(vmap(jacrev(jacfwd(one(function), (0, 1)), (0, 1)))(*tensors[:2]), expected)
    assert_equal(vmap(jacrev(jacrev(one(function), (0, 1)), (0, 1)))(*tensors[:2]), expected)


@pytest.mark.parametrize(
    ("routes", "state", "skip"),
    [(pattern("bi_ssm"), 1, True), (LINES, 2, True), (pattern("ssm"), 1, False)],
    ids=["bi_ssm", "restarts", "without D"],
)
def test_finite_differences_of_gradients(routes, state, skip):
    """Every derivative of first and second order, each mode over each."""
    shape = {"batch": 1, "height": 2, "width": 2, "channels": 2, "rank": 1}
    tensors = inputs(**shape, routes=len(routes), state=state, skip=skip)
    tensors = [t.requires_grad_() for t in tensors]
    function, _ = scan(routes)
    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, check_batched_grad=True)


def test_second_derivatives_equal_the_reference(form):
    function, reference, tensors, vectors, bound = form
    expected = functional.hvp(energy(reference), tuple(tensors), tuple(vectors))[1]
    assert_equal(functional.hvp(energy(function), tuple(tensors), tuple(vectors))[1], expected, bound)
    gradients = grad(energy(function), tuple(range(len(tensors))))
    assert_equal(jvp(gradients, tuple(tensors), tuple(vectors))[1], expected, bound)


def test_forward_over_reverse_of_one_argument():
    """Gradients of arguments that have nothing to do with it do not change."""
    function, reference = scan()
    tensors = inputs()

    def skips(function):
        return lambda D: grad(lambda *t: function(*t).sum(), EVERY)(*tensors[:5], D)

    assert_equal(
        jvp(skips(function), (tensors[5],), (tensors[5],))[1],
        jvp(skips(reference), (tensors[5],), (tensors[5],))[1],
    )


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_a_gradient_penalty_trains_on_every_backend(backend):
    def penalty_gradients(function, tensors):
        leaves = [t.clone().requires_grad_() for t in tensors]
        (slope,) = torch.autograd.grad(function(*leaves).sum(), leaves[:1], create_graph=True)
        return torch.autograd.grad(slope.square().sum(), leaves[1:5])

    tensors = inputs(dtype=torch.float32, height=9, width=9)
    function, reference = scan(backend=backend)
    expected = penalty_gradients(reference, [t.double() for t in tensors])
    assert_equal(penalty_gradients(function, tensors), expected, 1e-5)


def test_third_derivatives():
    function, reference = scan(pattern("ssm"))
    tensors = inputs(batch=1, height=1, width=3, channels=1, routes=1, rank=1)

    def third(function):
        return jacrev(hessian(lambda A: energy(function)(*tensors[:4], A, tensors[5])))(tensors[4])

    expected = third(reference)
    assert expected.abs().max() > 1e-3
    assert_equal(third(function), expected)


@pytest.mark.parametrize("size", [{"batch": 0}, {"height": 0}, {"channels": 0}], ids=str)
def test_empty_maps_have_every_derivative(size):
    function, _ = scan()
    tensors = tuple(inputs(**size))
    value, tangent = jvp(function, tensors, tensors)
    assert tangent.shape == value.shape
    second = functional.hvp(energy(function), tensors, tensors)[1]
    assert [h.shape for h in second] == [t.shape for t in tensors]


def test_graphs_of_transformed_functions():
    function, reference = scan()
    stacked = [torch.stack(t) for t in zip(*(inputs(seed=seed) for seed in (1, 2)), strict=True)]
    expected = vmap(grad(energy(reference), EVERY))(*stacked)
    per_example = functionalize(vmap(grad(energy(function), EVERY)))
    assert_equal(per_example(*stacked), expected)
    assert_equal(make_fx(per_example)(*stacked)(*stacked), expected)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_transformations(compiler):
    torch._dynamo.reset()
    function, reference = scan()
    tensors, tangents = inputs(), inputs(seed=1)
    compiled = torch.compile(grad(energy(function), EVERY), backend=compiler, fullgraph=True)
    assert_equal(compiled(*tensors), grad(energy(reference), EVERY)(*tensors))

    def by_level(x, v):
        return jvp(lambda x: function(x, *tensors[1:]), (x,), (v,))[1]

    def by_dual_numbers(x, v):
        with forward_ad.dual_level():
            y = function(forward_ad.make_dual(x, v), *tensors[1:])
            return forward_ad.unpack_dual(y).tangent

    expected = transposed_product(lambda x: reference(x, *tensors[1:]), tensors[:1], tangents[:1])
    for product in (by_level, by_dual_numbers):
        compiled = torch.compile(product, backend=compiler, fullgraph=True)
        assert_equal(compiled(tensors[0], tangents[0]), expected)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_autocast_changes_no_product_inside(backend):
    tensors = [t.requires_grad_() for t in inputs(dtype=torch.float32)]
    function, _ = scan(backend=backend)

    def everything():
        y = function(*tensors)
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), tensors[1:])
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(function(*(forward_ad.make_dual(t, t) for t in tensors))).tangent
        return y, first, second, tangent

    expected = everything()
    with torch.autocast("cpu", torch.bfloat16):
        found = everything()
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("n_routes", [1, 4])
def test_an_exported_program_serves_every_size(n_routes, channels):
    """Of one pixel and more, however many states of it are recorded."""

    class Scan(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return scan2d(*tensors, routes=CROSS[:n_routes])

    def arguments(*size: int) -> tuple[Tensor, ...]:
        return tuple(inputs(*size, channels, n_routes, state=2, dtype=torch.float32))

    sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    example = arguments(2, 7, 6)
    program = torch.export.export(Scan(), example, dynamic_shapes=((sizes, sizes, *(None,) * 4),)).module()
    for size in ((2, 7, 6), (1, 1, 1), (1, 8, 8), (3, 13, 5), (2, 30, 20)):
        torch.testing.assert_close(program(*arguments(*size)), Scan()(*arguments(*size)))
