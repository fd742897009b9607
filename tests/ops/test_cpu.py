"""The native CPU kernels against the float64 reference, for every instruction set of this machine."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ganglion.ops import PATTERNS, BackendError, Route, cpu, scan2d, scan2d_reference
from ganglion.ops.dispatch import BACKENDS
from tests.tolerances import RELATIVE_RMS, relative_rms

pytestmark = [
    pytest.mark.skipif(cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}"),
    pytest.mark.usefixtures("isa", "poison"),
]

NAMES = ("x", "proj", "dt_weight", "dt_bias", "A", "D")
CROSS = PATTERNS["cross2d"]
RESTARTED = tuple(dataclasses.replace(route, restart=True) for route in CROSS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    batch: int = 2
    height: int = 5
    width: int = 7
    channels: int = 33
    rank: int = 3
    state: int = 1
    routes: tuple[Route, ...] = CROSS
    dtype: torch.dtype = torch.float32
    skip: bool = True
    bias: float = -1.0
    decay: float = 1.0

    @property
    def codes(self) -> list[int]:
        return [route.code for route in self.routes]

    def inputs(self) -> tuple[Tensor | None, ...]:
        """x, proj, dt_weight, dt_bias, A, D."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        n_routes, pixels = len(self.routes), (self.batch, self.height, self.width)
        x = normal(*pixels, self.channels).to(self.dtype)
        proj = normal(*pixels, n_routes * (self.rank + 2 * self.state)).to(self.dtype)
        weight = normal(n_routes, self.channels, self.rank) * self.rank**-0.5
        bias = normal(n_routes, self.channels) + self.bias
        A = -self.decay * torch.exp(0.5 * normal(n_routes, self.channels, self.state))
        return x, proj, weight, bias, A, normal(n_routes, self.channels) if self.skip else None

    def grad_y(self) -> Tensor:
        shape = (self.batch, self.height, self.width, self.channels)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self.dtype)


@functools.cache
def expected(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """y and the gradients of the reference, in float64."""
    tensors = {
        n: t.double().requires_grad_() for n, t in zip(NAMES, case.inputs(), strict=True) if t is not None
    }
    y = scan2d_reference(*(tensors.get(name) for name in NAMES), case.routes)
    grads = torch.autograd.grad(y, list(tensors.values()), case.grad_y().double())
    return y.detach(), dict(zip(tensors, grads, strict=True))


def run(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """y and the gradients of the kernels."""
    inputs = case.inputs()
    y, carry = cpu.scan2d.forward(*inputs, case.codes)
    grads = cpu.scan2d.backward(case.grad_y(), *inputs, carry, case.codes)
    return y, {name: grad for name, grad in zip(NAMES, grads, strict=True) if grad is not None}


CASES = {
    **{name: Case(routes=routes) for name, routes in PATTERNS.items()},
    "restart": Case(routes=RESTARTED, state=2),
    "rot2d_restart": Case(routes=tuple(dataclasses.replace(r, restart=True) for r in PATTERNS["rot2d"])),
    **{f"channels_{n}": Case(channels=n, height=4, width=5) for n in (1, 3, 31, 32, 96, 200)},
    **{f"state_{n}": Case(state=n, height=9, width=8, channels=40) for n in (2, 4, 16)},
    **{f"rank_{n}": Case(rank=n, height=3, width=4) for n in (1, 5, 8, 12, 17, 48)},
    **{f"image_{h}x{w}": Case(height=h, width=w) for h, w in ((1, 1), (1, 6), (6, 1))},
    # Lengths around the distance of the recorded states.
    **{
        f"image_{h}x{w}": Case(height=h, width=w, channels=5, routes=PATTERNS["rot2d"])
        for h, w in ((7, 9), (8, 8), (5, 13), (1, 128), (43, 3))
    },
    "restart_8x16": Case(height=8, width=16, channels=5, routes=RESTARTED),
    "batch_3": Case(batch=3),
    "without_D": Case(skip=False),
    "float16": Case(dtype=torch.float16, height=9, width=8),
    "bfloat16": Case(dtype=torch.bfloat16, height=9, width=8, state=2),
    "bfloat16_block": Case(dtype=torch.bfloat16, channels=64),
    "strong_decay": Case(decay=1e3, bias=2.0),
    "weak_decay": Case(decay=1e-4, bias=-6.0, height=9, width=8),
    "growth": Case(decay=-0.1),
    "large_dt": Case(bias=30.0),
    "small_dt": Case(bias=-40.0, skip=False),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients_equal_reference(name):
    case = CASES[name]
    y, grads = run(case)
    y_expected, grads_expected = expected(case)
    assert y.dtype == case.dtype
    assert relative_rms(y, y_expected) < RELATIVE_RMS[case.dtype]
    assert grads.keys() == grads_expected.keys()
    for parameter, grad in grads.items():
        dtype = case.dtype if parameter in ("x", "proj") else torch.float32
        assert grad.dtype == dtype
        # The derivative of the decay vanishes where it underflows.
        if grads_expected[parameter].norm() == 0 or (name, parameter) == ("image_1x1", "A"):
            assert not grad.any()
        else:
            # Where nearly all decays underflow, few terms make the gradient of A.
            bound = RELATIVE_RMS[dtype] * (1 + (name == "strong_decay"))
            assert relative_rms(grad, grads_expected[parameter]) < bound, parameter


@pytest.mark.parametrize("case", [CASES["cross2d"], CASES["restart_8x16"], CASES["state_4"]])
def test_carry_is_the_state_before_every_64th_step(case):
    _, carry = cpu.scan2d.forward(*case.inputs(), case.codes)
    _, carry_expected = BACKENDS["torch"].scan2d.forward(*(t.double() for t in case.inputs()), case.codes)
    assert carry.shape == carry_expected.shape
    torch.testing.assert_close(carry.double(), carry_expected, rtol=1e-4, atol=1e-6)


def pointwise(bias: Tensor, A: Tensor, pixels: int = 1) -> tuple[Tensor, Tensor]:
    """y and the gradient of dt_bias for one route with B = C = 1 and x = 1 at the first pixel only."""
    channels = len(bias)
    x = torch.zeros(1, 1, pixels, channels)
    x[:, :, 0] = 1
    proj = torch.tensor([0.0, 1.0, 1.0]).expand(1, 1, pixels, 3).contiguous()
    inputs = x, proj, torch.ones(1, channels, 1), bias[None], A.reshape(1, channels, 1), None
    y, carry = cpu.scan2d.forward(*inputs, [0])
    grad_bias = cpu.scan2d.backward(torch.ones_like(y), *inputs, carry, [0])[3]
    return y[0, 0], grad_bias[0]


def largest_error(actual: Tensor, expected: Tensor, exponent: Tensor) -> float:
    """Relative error over the promise: 3e-7, and the rounding of the exponent to float32."""
    promise = 3e-7 + 1.2e-7 * exponent.abs()
    return float(((actual.double() - expected).abs() / expected / promise).max())


def test_softplus_is_accurate_for_every_input():
    v = torch.cat([torch.linspace(-80, 20, 4001), torch.tensor([20.5, 1e4, 1e30])]).double()
    dt, slope = pointwise(v.float(), torch.zeros_like(v).float())
    v = v.float().double()
    assert largest_error(dt[0], F.softplus(v, threshold=100), v.clamp_max(0)) < 1
    assert largest_error(slope, torch.sigmoid(v), v.clamp_max(0)) < 1


def test_decay_is_accurate_until_it_underflows():
    A = torch.cat([-torch.logspace(-6, 1.9, 4001), torch.linspace(0, 80, 101)])
    v = torch.full_like(A, 0.54132485)  # dt is about one
    y, _ = pointwise(v, A, pixels=2)  # dt, dt * exp(dt * A)
    dt = F.softplus(v.double())
    assert largest_error(y[1], dt * torch.exp(dt * A.double()), 2 * A) < 1
    underflowed, _ = pointwise(v[:3], torch.tensor([-89.0, -1e4, -1e30]), pixels=2)
    assert (underflowed[0] > 0.9).all()
    assert not underflowed[1].any()


def test_growth_overflows_to_infinity():
    """Not to a number, as the bits of an exponent that is too large would make."""
    A = torch.tensor([85.0, 90.0, 1e2, 128.0, 200.0, 1e3, 1e4])[None, :, None]
    channels = A.shape[1]
    # dt is about 0.007 at the first pixel, where nothing overflows, and one at the second.
    proj = torch.tensor([[-5.0, 1.0, 1.0], [0.54132485, 1.0, 1.0]])[None, None]
    x = torch.ones(1, 1, 2, channels)
    y, _ = cpu.scan2d.forward(x, proj, torch.ones(1, channels, 1), torch.zeros(1, channels), A, None, [0])
    assert y[0, 0, 0].isfinite().all() and y[0, 0, 1, 0].isfinite()
    assert (y[0, 0, 1, 1:] == torch.inf).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_subnormal_numbers_of_others_survive_a_call(threads):
    """The kernels work without them, and restore what the thread had."""
    before = torch.get_num_threads()
    small = torch.full((1 << 16,), 1e-40)
    try:
        torch.set_num_threads(threads)
        run(Case(batch=4))
        assert (small + small > 1e-40).all()
        assert float(torch.tensor(1e-40) * 2) > 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_nan_stays_one_in_half_precision(dtype):
    """Rounding its bits like those of a number could carry them into infinity or zero."""
    bits = torch.tensor([0x7FFFFFFF, 0x7F800001, 0x7FC00000, 0x7FFF8000, -1, -0x7FFFFF], dtype=torch.int32)
    D = bits.view(torch.float32)[None]
    assert D.isnan().all()
    channels = D.shape[1]
    y, _ = cpu.scan2d.forward(
        torch.ones(1, 1, 1, channels, dtype=dtype),
        torch.zeros(1, 1, 1, 3, dtype=dtype),
        torch.ones(1, channels, 1),
        torch.zeros(1, channels),
        -torch.ones(1, channels, 1),
        D,
        [0],
    )
    assert y.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_and_rounded_as_torch_does(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    # The state is float32 without subnormal numbers, which bfloat16 has and float16 widened to float32 has not.
    x = every[every.isfinite() & ((every == 0) | (every.float().abs() > 2e-38))]
    channels = 1024
    x = F.pad(x, (0, -len(x) % channels)).reshape(1, 1, -1, channels)
    D = torch.rand(channels, generator=torch.Generator().manual_seed(0)).add(1)[None]
    D[:, ::2] = 1.5  # makes ties
    proj = torch.zeros(*x.shape[:3], 3, dtype=dtype)
    y, _ = cpu.scan2d.forward(
        x, proj, torch.ones(1, channels, 1), torch.zeros_like(D), -torch.ones(1, channels, 1), D, [0]
    )
    assert torch.equal(y, (x.float() * D).to(dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("routes", [CROSS, RESTARTED])
def test_nonfinite_inputs_reach_what_depends_on_them(value, routes):
    case = Case(routes=routes, channels=35, skip=False)
    x, *rest = case.inputs()
    x[1, 2, 3, 34] = value
    y, carry = cpu.scan2d.forward(x, *rest, case.codes)
    y_expected = scan2d_reference(x.double(), *(t if t is None else t.double() for t in rest), routes)
    assert torch.equal(y.isfinite(), y_expected.isfinite())
    assert not y.isfinite().all()
    grad_x = cpu.scan2d.backward(torch.ones_like(y), x, *rest, carry, case.codes)[0]
    assert grad_x[0].isfinite().all()
    assert grad_x[1, ..., :34].isfinite().all()


def test_nan_in_a_projection_reaches_all_channels_of_its_image():
    case = Case(channels=35)
    x, proj, *rest = case.inputs()
    proj[0, 0, 0, 0] = float("nan")
    y, carry = cpu.scan2d.forward(x, proj, *rest, case.codes)
    assert y[0, 0, 0].isnan().all()
    assert y[1].isfinite().all()
    grad_x = cpu.scan2d.backward(torch.ones_like(y), x, proj, *rest, carry, case.codes)[0]
    assert grad_x[0].isnan().any()
    assert grad_x[1].isfinite().all()


@pytest.mark.parametrize("batch", [1, 5])
def test_results_do_not_depend_on_the_number_of_threads(batch):
    case = Case(batch=batch, height=9, width=11, channels=130, state=2, rank=5)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(run(case))
    finally:
        torch.set_num_threads(before)
    y, grads = results[0]
    for y_other, grads_other in results[1:]:
        assert torch.equal(y, y_other)
        for name, grad in grads.items():
            assert torch.equal(grad, grads_other[name]), name


def test_more_images_than_partial_sums():
    """Gradients of the parameters are added up over groups of images."""
    one, many = Case(batch=1, height=2, width=3), Case(batch=70, height=2, width=3)
    x, proj, *rest = one.inputs()
    x, proj = (t.expand(70, -1, -1, -1).contiguous() for t in (x, proj))
    grad_y = one.grad_y().expand_as(x).contiguous()
    y, carry = cpu.scan2d.forward(x, proj, *rest, many.codes)
    grads = dict(zip(NAMES, cpu.scan2d.backward(grad_y, x, proj, *rest, carry, many.codes), strict=True))
    y_expected, grads_expected = expected(one)
    assert relative_rms(y, y_expected.expand_as(y)) < RELATIVE_RMS[torch.float32]
    for name, grad in grads.items():
        scaled = grads_expected[name].expand_as(grad) * (1 if name in ("x", "proj") else 70)
        assert relative_rms(grad, scaled) < RELATIVE_RMS[torch.float32], name


@pytest.mark.parametrize("shape", [(0, 5, 7, 8), (2, 0, 7, 8), (2, 5, 0, 8), (2, 5, 7, 0)])
def test_empty_inputs(shape):
    batch, height, width, channels = shape
    case = Case(batch=batch, height=height, width=width, channels=channels)
    y, grads = run(case)
    assert y.shape == shape
    for name, tensor in zip(NAMES, case.inputs(), strict=True):
        assert grads[name].shape == tensor.shape
        assert not grads[name].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_operator_takes_noncontiguous_inputs(dtype):
    case = Case(dtype=dtype, channels=36, state=2)
    x, proj, *rest = case.inputs()
    dense = [t.requires_grad_() for t in (x, proj, *rest)]
    strided = [t.detach().mT.contiguous().mT.requires_grad_() for t in dense]
    assert not any(t.is_contiguous() for t in strided)
    results = []
    for tensors in (dense, strided):
        y = scan2d(*tensors, routes=case.routes, backend="cpu")
        results.append((y, *torch.autograd.grad(y, tensors, case.grad_y().mT.contiguous().mT)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert relative_rms(results[0][0].detach(), expected(case)[0]) < RELATIVE_RMS[dtype]


def test_float64_is_rejected_with_a_reason():
    case = Case()
    inputs = [t.double() for t in case.inputs()]
    with pytest.raises(BackendError, match="it computes in float32"):
        scan2d(*inputs, routes=case.routes, backend="cpu")


def test_unknown_instruction_set_names_the_valid_ones(monkeypatch):
    monkeypatch.setenv(cpu.ISA_ENV, "axv2")
    with pytest.raises(ValueError, match=r"GANGLION_CPU_ISA: unknown instruction set 'axv2'.*baseline"):
        run(Case())


@pytest.fixture
def library_in(tmp_path, monkeypatch):
    """The module as if it lay in an empty folder."""
    monkeypatch.setattr(cpu.library, "__file__", str(tmp_path / "library.py"))
    cpu.library._library.cache_clear()
    cpu.library._indices.cache_clear()
    yield tmp_path
    cpu.library._library.cache_clear()
    cpu.library._indices.cache_clear()


def test_a_missing_library_is_reported_and_the_scan_still_runs(library_in):
    assert "pip install" in cpu.unavailable()
    assert cpu.instruction_sets() == ()
    case = Case(height=2, width=3)
    y = scan2d(*case.inputs(), routes=case.routes, backend="no-cpu")
    assert relative_rms(y, expected(case)[0]) < RELATIVE_RMS[torch.float32]
    with pytest.raises(BackendError, match="does not exist"):
        scan2d(*case.inputs(), routes=case.routes, backend="cpu")


def test_an_unsuitable_library_is_reported(library_in):
    for name in ("libganglion_scan.so", "libganglion_scan.dylib", "ganglion_scan.dll"):
        (library_in / name).write_bytes(b"not a library")
    assert "does not fit" in cpu.unavailable()
