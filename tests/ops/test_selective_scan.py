"""`selective_scan` on every backend that runs here, against the reference loop in float64 and the published kernels."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from ganglion.ops import selective_scan, selective_scan_reference
from ganglion.ops.dispatch import BACKENDS
from tests.golden_data import load
from tests.tolerances import RELATIVE_RMS_COMPOSED, assert_close, relative_rms

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
SEQUENCES = ("u", "delta", "B", "C", "z")
GOLDEN = load("ops")
CASES = sorted(GOLDEN.meta["ss"])
BACKEND_NAMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            BACKENDS[name].unavailable() is not None or not hasattr(BACKENDS[name], "selective_scan"),
            reason="not available here",
        ),
    )
    for name in ("cpu", "torch")
]


def golden_inputs(case: str, dtype: torch.dtype) -> dict[str, Tensor]:
    keys = {name: f"ss.{case}.in.{name}" for name in NAMES}
    return {n: GOLDEN[k].to(dtype).requires_grad_() for n, k in keys.items() if k in GOLDEN.arrays}


@pytest.mark.parametrize(
    ("scan", "dtype"),
    [
        (selective_scan, torch.float32),
        (partial(selective_scan, backend="torch"), torch.float64),
        (selective_scan_reference, torch.float64),
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_golden_outputs_and_gradients(case, dtype, scan):
    inputs = golden_inputs(case, dtype)
    y = scan(**inputs, delta_softplus=bool(GOLDEN[f"ss.{case}.softplus"]))
    bound = RELATIVE_RMS_COMPOSED[dtype]
    assert relative_rms(y, GOLDEN[f"ss.{case}.out"]) <= bound
    grads = torch.autograd.grad(y, list(inputs.values()), GOLDEN[f"ss.{case}.grad_out"].to(dtype))
    for name, grad in zip(inputs, grads, strict=True):
        assert relative_rms(grad, GOLDEN[f"ss.{case}.grad.{name}"]) <= bound, name


def inputs(
    batch=2,
    groups=2,
    channels=3,
    length=7,
    state=2,
    dtype=torch.float64,
    B="grouped",
    C="grouped",
    without=(),
) -> dict[str, Tensor]:
    """Arguments of `selective_scan` with gradients; channels are those of a group."""
    generator = torch.Generator().manual_seed(0)
    wide = groups * channels
    weights = {"constant": (wide, state), "shared": (batch, state, length)}
    weights["grouped"] = (batch, groups, state, length)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    args = {
        "u": normal(batch, wide, length),
        "delta": normal(batch, wide, length),
        "A": -normal(wide, state).exp(),
        "B": normal(*weights[B]),
        "C": normal(*weights[C]),
        "D": normal(wide),
        "z": normal(batch, wide, length),
        "delta_bias": normal(wide) - 1,
        "initial_state": normal(batch, wide, state),
    }
    work = torch.promote_types(dtype, torch.float32)
    kept = {name: t for name, t in args.items() if name not in without}
    return {name: t.to(dtype if name in SEQUENCES else work).requires_grad_() for name, t in kept.items()}


def run(scan, args: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
    """y, the last state and every gradient of both together."""
    y, last_state = scan(**args, **{"delta_softplus": True, "return_last_state": True} | kwargs)
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (y, last_state)
    ]
    grads = torch.autograd.grad([y, last_state], list(args.values()), cotangents)
    return {"y": y, "last_state": last_state, **dict(zip(args, grads, strict=True))}


def exact(args: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().double().requires_grad_() for name, t in args.items()}


def check(args: dict[str, Tensor], backend: str, **kwargs) -> None:
    found = run(selective_scan, args, backend=backend, **kwargs)
    expected = run(selective_scan_reference, exact(args), **kwargs)
    for name, tensor in found.items():
        assert tensor.dtype == args.get(name, args["A"] if name == "last_state" else args["u"]).dtype, name
        # Sums over all positions of rounded halves are float32 themselves.
        half = args["u"].dtype if args["u"].dtype.itemsize == 2 else None
        assert_close(tensor, expected[name], half, name)


def test_the_signature_is_the_published_one_and_more():
    names = list(inspect.signature(selective_scan).parameters)
    published = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus", "return_last_state"]
    assert names == [*published, "initial_state", "backend"]
    assert names[:-1] == list(inspect.signature(selective_scan_reference).parameters)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("C", ["constant", "shared", "grouped"])
@pytest.mark.parametrize("B", ["constant", "shared", "grouped"])
def test_every_form_of_B_and_C_equals_the_reference(B, C, backend):
    check(inputs(B=B, C=C, length=70, dtype=torch.float32), backend)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("name", SEQUENCES[1:])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_sequence_may_be_more_precise_than_the_others(dtype, name, backend):
    """As Mamba's code calls it: delta in float32 beside halves. Nothing of it is lost."""
    args = inputs(length=20, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    precise = torch.randn(args[name].shape, generator=generator) * 3
    args[name] = precise.requires_grad_()
    found = run(selective_scan, args, backend=backend)
    expected = run(selective_scan_reference, exact(args))
    assert found[name].dtype == torch.float32 and found["y"].dtype == dtype
    # The state is float32 and takes all of it.
    assert relative_rms(found["last_state"], expected["last_state"]) < 1e-5
    assert_close(found["y"], expected["y"], dtype)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype, backend):
    """The skip and the gate are taken of the float32 sum: y is the exact result, rounded."""
    args = {n: t.detach() for n, t in inputs(length=100, dtype=dtype).items()}
    args["D"] = args["D"] * 3
    y = selective_scan(**args, delta_softplus=True, backend=backend)
    expected = selective_scan_reference(**{n: t.double() for n, t in args.items()}, delta_softplus=True)
    assert (y == expected.to(dtype)).double().mean() > 0.99


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("without", [(), *((name,) for name in NAMES[5:]), NAMES[5:]])
def test_every_option_equals_the_reference(without, softplus, backend):
    args = inputs(without=without, dtype=torch.float32)
    with torch.no_grad():
        args["delta"].abs_()
    check(args, backend, delta_softplus=softplus)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("state", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_and_state_equals_the_reference(dtype, state, backend):
    check(inputs(state=state, length=50, dtype=dtype), backend)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 500])
def test_every_length_equals_the_reference(length, backend):
    check(inputs(length=length, dtype=torch.float32), backend)


def test_length_3136_in_float64():
    """Also where softplus is the identity."""
    args = inputs(batch=1, groups=1, channels=1, length=3136, state=1)
    with torch.no_grad():
        args["delta"][:, :, ::3] += 25
    check(args, "torch")


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("wide", SEQUENCES)
def test_dtypes_may_differ(wide, backend):
    """One tensor in float32 among bfloat16."""
    args = inputs(dtype=torch.bfloat16, length=70)
    args[wide] = args[wide].detach().float().requires_grad_()
    found = run(selective_scan, args, backend=backend)
    expected = run(selective_scan_reference, exact(args))
    for name, tensor in found.items():
        assert_close(tensor, expected[name], torch.bfloat16, name)
    assert found["y"].dtype == args["u"].dtype
    assert all(found[name].dtype == t.dtype for name, t in args.items())


def test_the_state_has_the_precision_of_u():
    args = inputs(dtype=torch.float32)
    doubled = {n: t if n == "u" else t.detach().double().requires_grad_() for n, t in args.items()}
    found, expected = run(selective_scan, doubled), run(selective_scan, args)
    assert found["y"].dtype == found["last_state"].dtype == torch.float32
    for name, t in found.items():
        torch.testing.assert_close(t.float(), expected[name])
    args["u"] = args["u"].detach().double().requires_grad_()
    assert run(selective_scan, args, backend="torch")["last_state"].dtype == torch.float64


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_D_is_added_before_rounding(backend):
    """In float32: D u alone fills a half's mantissa."""
    args = {n: t.detach() for n, t in inputs(dtype=torch.bfloat16, length=60, without=("z",)).items()}
    y = selective_scan(**args, backend=backend)
    expected = selective_scan_reference(**args)
    assert (y == expected).float().mean() > 0.99


@pytest.mark.parametrize("B", ["constant", "shared", "grouped"])
def test_gradcheck(B):
    args = inputs(batch=1, channels=2, length=5, B=B)

    def scan(*tensors):
        named = dict(zip(args, tensors, strict=True))
        return selective_scan(**named, delta_softplus=True, return_last_state=True, backend="torch")

    assert gradcheck(scan, tuple(args.values()))


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("without", [(), NAMES[5:]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype, without, backend):
    args = inputs(dtype=dtype, without=without)
    args["u"] = args["u"].detach().mT.contiguous().mT.requires_grad_()
    ordered = [args.get(name) for name in NAMES]
    torch.library.opcheck(torch.ops.ganglion.selective_scan, (*ordered, True, backend))
    detached = [t if t is None else t.detach() for t in ordered]
    y, last_state, carry = torch.ops.ganglion.selective_scan(*detached, True, backend)
    torch.library.opcheck(
        torch.ops.ganglion.selective_scan_backward, (y, last_state, *detached, carry, True, backend)
    )


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_inputs_of_any_strides(backend):
    """Channels last, a slice of a wider projection, every second position, one value for all."""
    args = {name: t.detach() for name, t in inputs(length=70, dtype=torch.float32).items()}
    dense = dict(args)
    args["u"] = args["u"].mT.contiguous().mT
    args["z"] = torch.cat([args["u"], args["z"]], dim=1)[:, args["u"].shape[1] :]
    args["delta"] = args["delta"].repeat_interleave(2, dim=2)[..., ::2]
    args["B"] = torch.cat([args["B"], args["C"]], dim=2)[:, :, : args["B"].shape[2]]
    args["C"] = args["C"].transpose(1, 3).contiguous().transpose(1, 3)
    dense["D"] = torch.full_like(dense["D"], 0.5)
    args["D"] = torch.tensor(0.5).expand_as(dense["D"])
    args["A"], args["initial_state"] = (args[n].mT.contiguous().mT for n in ("A", "initial_state"))
    found, expected = (
        run(selective_scan, {n: t.requires_grad_() for n, t in a.items()}, backend=backend)
        for a in (args, dense)
    )
    for name, t in found.items():
        torch.testing.assert_close(t, expected[name])


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_carries_are_the_states_before_each_chunk(backend):
    args = inputs(length=140, dtype=torch.float32)
    _, _, carry = torch.ops.ganglion.selective_scan(*args.values(), True, backend)
    carry = carry.unflatten(1, (3, 2, 6))
    for i in range(3):
        part = {n: t[..., : 64 * i] if n in SEQUENCES else t for n, t in exact(args).items()}
        _, state = selective_scan_reference(**part, delta_softplus=True, return_last_state=True)
        assert_close(carry[:, i].mT, state)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_a_sequence_may_be_scanned_in_pieces(backend):
    args = {n: t.detach() for n, t in inputs(length=100, dtype=torch.float32).items()}
    args["delta_softplus"] = args["return_last_state"] = True
    y, last_state = selective_scan(**args, backend=backend)
    ys, state = [], args["initial_state"]
    for piece in (slice(0, 1), slice(1, 70), slice(70, 100)):
        part = {n: t[..., piece] if n in SEQUENCES else t for n, t in args.items()}
        y_part, state = selective_scan(**part | {"initial_state": state}, backend=backend)
        ys.append(y_part)
    torch.testing.assert_close(torch.cat(ys, dim=2), y)
    torch.testing.assert_close(state, last_state)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["u", "delta"])
def test_nan_and_inf_go_on_in_their_channel_only(name, value, backend):
    args = {n: t.detach() for n, t in inputs(length=80, dtype=torch.float32).items()}
    args[name][1, 4, 30] = value
    y = selective_scan(**args, delta_softplus=True, backend=backend)
    expected = selective_scan_reference(**args, delta_softplus=True)
    assert torch.equal(y.isfinite(), expected.isfinite())
    bad = ~y.isfinite()
    assert bad[1, 4, 30:].any() and not bad[1, 4, :30].any()
    bad[1, 4] = False
    assert not bad.any()


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_strong_decay_and_large_steps_stay_finite(scale, backend):
    args = inputs(length=80, dtype=torch.float32)
    with torch.no_grad():
        args["A"].mul_(scale)
        args["delta_bias"].add_(30)
    check(args, backend)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
@pytest.mark.parametrize("without", [(), ("initial_state",)])
@pytest.mark.parametrize("size", [{"batch": 0}, {"channels": 0}, {"length": 0}])
def test_empty_inputs_give_empty_outputs_and_zero_gradients(size, without, backend):
    args = inputs(**size, without=without, dtype=torch.float32)
    found = run(selective_scan, args, backend=backend)
    assert found["y"].shape == args["u"].shape
    assert found["last_state"].shape == (*args["u"].shape[:2], 2)
    for name, t in args.items():
        assert found[name].shape == t.shape
        assert name == "initial_state" or not found[name].any()
    if "length" in size and not without:
        assert torch.equal(found["last_state"], args["initial_state"])
        assert found["initial_state"].any()


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_two_runs_are_equal(backend):
    first, second = (
        run(selective_scan, inputs(length=150, dtype=torch.float32), backend=backend) for _ in "ab"
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_what_a_training_step_keeps(backend):
    """The inputs, which are there anyway, and one state in 64 steps."""
    kept = []
    args = inputs(batch=1, channels=16, length=640, state=8, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        selective_scan(**args, backend=backend)
    own = {t.data_ptr() for t in args.values()}
    assert sum(t.numel() for t in kept if t.data_ptr() not in own) == args["u"].numel() * 8 // 64
