"""`selective_scan` under PyTorch's transformations, against loops, finite differences and the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, functional, gradcheck, gradgradcheck
from torch.func import grad, jacrev, jvp, vmap

from ganglion.ops import selective_scan, selective_scan_reference
from tests.ops.test_transforms import assert_equal, energy, transposed_product

pytestmark = pytest.mark.filterwarnings("ignore:ganglion. selective_scan runs on the slower backend")

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
#: Shapes of B and C, what is None, and the rest.
FORMS = {
    "everything": {},
    "nothing": {"without": ("D", "z", "delta_bias", "initial_state")},
    "constant B": {"B": "constant"},
    "grouped": {"B": "grouped", "C": "grouped", "state": 1},
    "constant": {"B": "constant", "C": "constant", "without": ("z",)},
    "long": {"length": 66, "batch": 1},
}


def inputs(
    batch=2, channels=4, length=3, state=2, B="shared", C="shared", without=(), seed=0, dtype=torch.float64
):
    """Tensors by name."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = {
        "constant": (channels, state),
        "shared": (batch, state, length),
        "grouped": (batch, 2, state, length),
    }
    tensors = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -normal(channels, state).exp(),
        "B": normal(*weights[B]),
        "C": normal(*weights[C]),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
        "initial_state": normal(batch, channels, state),
    }
    return {name: tensor for name, tensor in tensors.items() if name not in without}


def of_both(names, scan=selective_scan):
    """Output and last state, weighted, as one function of the tensors."""

    def function(*tensors: Tensor) -> Tensor:
        arguments = dict(zip(names, tensors, strict=True))
        y, last = scan(**arguments, delta_softplus=True, return_last_state=True)
        return torch.cat([y.flatten(1), 2 * last.flatten(1)], dim=1)

    return function


@pytest.fixture(params=FORMS)
def form(request):
    """A function, its reference, its arguments and others like them."""
    first, other = (inputs(**FORMS[request.param], seed=seed) for seed in (0, 1))
    both = (of_both(list(first), scan) for scan in (selective_scan, selective_scan_reference))
    return *both, tuple(first.values()), tuple(other.values())


def test_forward_mode_equals_reverse_mode(form):
    function, reference, tensors, tangents = form
    expected = transposed_product(reference, tensors, tangents)
    assert_equal(jvp(function, tensors, tangents)[1], expected)
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(tensors, tangents, strict=True)]
        assert_equal(forward_ad.unpack_dual(function(*duals)).tangent, expected)


def test_first_and_second_derivatives_equal_the_reference(form):
    function, reference, tensors, vectors = form
    places = tuple(range(len(tensors)))
    assert_equal(grad(energy(function), places)(*tensors), grad(energy(reference), places)(*tensors))
    expected = functional.hvp(energy(reference), tensors, vectors)[1]
    assert_equal(functional.hvp(energy(function), tensors, vectors)[1], expected)
    assert_equal(jvp(grad(energy(function), places), tensors, vectors)[1], expected)


@pytest.mark.parametrize("which", ["everything", "constant B", "grouped"])
@pytest.mark.parametrize("mapped", [*NAMES, "images", "all"])
def test_vmap_equals_a_loop(mapped, which):
    examples = [inputs(**FORMS[which], seed=seed) for seed in (1, 2, 3)]
    fixed = inputs(**FORMS[which])
    images = [name for name in NAMES if fixed[name].ndim > 2]
    chosen = {"images": images, "all": NAMES}.get(mapped, [mapped])
    function = of_both(NAMES)
    stacked = [torch.stack([e[n] for e in examples], 1) if n in chosen else fixed[n] for n in NAMES]
    in_dims = tuple(1 if n in chosen else None for n in NAMES)
    loop = [[e[n] if n in chosen else fixed[n] for n in NAMES] for e in examples]
    assert_equal(vmap(function, in_dims)(*stacked), torch.stack([function(*a) for a in loop]))
    places = tuple(range(len(NAMES)))
    gradients = [grad(energy(function), places)(*a) for a in loop]
    expected = [torch.stack(g) for g in zip(*gradients, strict=True)]
    assert_equal(vmap(grad(energy(function), places), in_dims)(*stacked), expected)


@pytest.mark.parametrize("which", ["everything", "nothing", "constant"])
def test_finite_differences_of_gradients(which):
    arguments = inputs(**FORMS[which] | {"batch": 1, "channels": 2, "length": 2, "state": 1})
    tensors = [t.requires_grad_() for t in arguments.values()]
    function = of_both(list(arguments))
    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, check_batched_grad=True)


def test_one_output_alone_has_gradients():
    """Also twice."""
    tensors = tuple(inputs().values())

    def last(scan):
        return lambda *t: scan(**dict(zip(NAMES, t, strict=True)), return_last_state=True)[1].square().sum()

    found, expected = (
        jacrev(grad(last(scan), 2), 2)(*tensors) for scan in (selective_scan, selective_scan_reference)
    )
    assert expected.abs().max() > 1e-3
    assert_equal(found, expected)


@pytest.mark.parametrize("length", [0, 3])
def test_empty_batches_have_every_derivative(length):
    tensors = tuple(inputs(batch=0 if length else 2, length=length).values())
    function = of_both(NAMES)
    value, tangent = jvp(function, tensors, tensors)
    assert tangent.shape == value.shape
    second = functional.hvp(energy(function), tensors, tensors)[1]
    assert [h.shape for h in second] == [t.shape for t in tensors]


def test_compiled_forward_mode():
    torch._dynamo.reset()
    tensors, tangents = (tuple(inputs(seed=seed).values()) for seed in (0, 1))
    function = of_both(NAMES)
    compiled = torch.compile(lambda t, v: jvp(function, t, v)[1], backend="aot_eager", fullgraph=True)
    expected = transposed_product(of_both(NAMES, selective_scan_reference), tensors, tangents)
    assert_equal(compiled(tensors, tangents), expected)
