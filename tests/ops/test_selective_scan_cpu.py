"""The native kernels of the 1-D scan against the float64 reference, for every instruction set of this machine."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from ganglion.ops import BackendError, cpu, selective_scan, selective_scan_reference
from tests.ops.test_selective_scan import NAMES, SEQUENCES, exact, inputs
from tests.tolerances import assert_close

pytestmark = [
    pytest.mark.skipif(cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}"),
    pytest.mark.usefixtures("isa", "poison"),
]


def run(scan, args: dict[str, Tensor], dtype=torch.float32, **kwargs) -> dict[str, Tensor]:
    """y, the last state and every gradient of both together, given those of y, which are rounded to `dtype`."""
    y, last_state = scan(**args, **{"delta_softplus": True, "return_last_state": True} | kwargs)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=generator) for t in (y, last_state)]
    cotangents = [cotangents[0].to(dtype).to(y.dtype), cotangents[1].to(last_state.dtype)]
    grads = torch.autograd.grad([y, last_state], list(args.values()), cotangents)
    return {"y": y.detach(), "last_state": last_state.detach(), **dict(zip(args, grads, strict=True))}


@functools.cache
def expected(**case) -> dict[str, Tensor]:
    return run(selective_scan_reference, exact(inputs(**case)), case["dtype"])


def native(args: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
    return run(selective_scan, args, backend="cpu", **kwargs)


def compare(found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert found.keys() == reference.keys()
    for name, tensor in found.items():
        assert_close(tensor, reference[name], name=name)


ONE = {"batch": 1, "groups": 1}
HALF = {"length": 71, "channels": 17, "state": 3}
CASES = {
    **{f"state_{n}": {"state": n, "length": 70, "channels": 5} for n in (1, 2, 3, 4, 5, 7, 8, 16)},
    **{f"state_{n}": {**ONE, "state": n, "length": 66, "channels": 3} for n in (63, 64, 256)},
    # Widths around those of a vector of 4, 8 or 16 channels.
    **{f"channels_{n}": {"channels": n, "length": 20} for n in (1, 4, 5, 8, 9, 15, 16, 17, 31, 33)},
    # Lengths around those of a vector and of a chunk.
    **{f"length_{n}": {"length": n, "channels": 16} for n in (1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 128, 200)},
    "groups_5": {"groups": 5, "channels": 6, "length": 66},
    "blocks_in_slices": {**ONE, "channels": 200, "length": 70},
    "blocks_in_few_slices": {**ONE, "channels": 100, "length": 10, "state": 20},
    "images_in_pieces": {"batch": 70, "channels": 2, "length": 5},
    "constant_B": {"B": "constant", "channels": 19, "state": 5, "length": 66},
    "constant_C": {"C": "constant", "channels": 19, "state": 5, "length": 66},
    "constant_both": {"B": "constant", "C": "constant", "channels": 19, "state": 5, "length": 66},
    "constant_both_images": {"batch": 70, "B": "constant", "C": "constant", "length": 3},
    "shared": {"B": "shared", "C": "shared", "channels": 19, "length": 66},
    "mixed": {"B": "shared", "C": "grouped", "channels": 19, "length": 66},
    "without_anything": {"without": NAMES[5:], "length": 70},
    "without_gate": {"without": ("z",), "length": 70, "channels": 20},
    "without_D": {"without": ("D",), "length": 70},
    "float16": {**HALF, "dtype": torch.float16},
    "bfloat16": {**HALF, "dtype": torch.bfloat16},
    "bfloat16_constant": {**HALF, "dtype": torch.bfloat16, "B": "constant", "C": "constant"},
    "bfloat16_vectors": {"length": 64, "channels": 16, "dtype": torch.bfloat16},
}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients_equal_reference(name):
    case = {"dtype": torch.float32} | CASES[name]
    compare(native(inputs(**case), dtype=case["dtype"]), expected(**case))


def test_without_softplus():
    args = inputs(channels=17, length=70, dtype=torch.float32)
    with torch.no_grad():
        for name in ("delta", "delta_bias"):
            args[name].abs_().mul_(0.1)
    compare(
        native(args, delta_softplus=False), run(selective_scan_reference, exact(args), delta_softplus=False)
    )


@pytest.mark.parametrize(
    ("decay", "bias"), [(1e3, 3.0), (1e-4, -6.0), (-0.1, -4.0), (1.0, 30.0), (1.0, -40.0), (0.0, 0.0)]
)
def test_extreme_decays_and_steps(decay, bias):
    """Decay that underflows, that is nearly one, growth, softplus's linear and exponential ends, no decay."""
    args = inputs(channels=17, length=70, without=("initial_state",), dtype=torch.float32)
    with torch.no_grad():
        args["A"].mul_(decay)
        args["delta_bias"].add_(bias)
    found = native(args)
    assert all(t.isfinite().all() for t in found.values())
    compare(found, run(selective_scan_reference, exact(args)))


def test_an_exponent_beyond_float32_is_infinite():
    args = inputs(without=("D", "z", "delta_bias"), length=5, channels=17, dtype=torch.float32)
    numbers = {"A": 40.0, "delta": 3.0}
    args = {name: torch.full_like(t, numbers.get(name, 1.0)).detach() for name, t in args.items()}
    assert torch.equal(selective_scan(**args, backend="cpu"), torch.full_like(args["u"], torch.inf))


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_values_reach_what_depends_on_them(name, value):
    """Forward and backward as in the reference, also where lanes of the last vector hold no channel."""
    args = inputs(channels=17, length=70, dtype=torch.float32)
    with torch.no_grad():
        args[name][1, -1, ..., 30] = value
    found, reference = native(args), run(selective_scan_reference, args)
    for key, tensor in found.items():
        assert torch.equal(tensor.isfinite(), reference[key].isfinite()), key
    # softplus(-inf) is a step of zero.
    assert found["y"].isfinite().all() == (name == "delta" and value == -float("inf"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["channels_last", "every_second", "slice", "turned", "expanded"])
def test_tensors_are_read_where_they_lie(layout, dtype):
    """The same numbers in other memory give the same bits."""

    def place(t: Tensor) -> Tensor:
        if layout == "channels_last":
            return t.transpose(1, -1).contiguous().transpose(1, -1)
        if layout == "every_second":
            return torch.stack([t, torch.full_like(t, torch.nan)], dim=-1).flatten(-2)[..., ::2]
        if layout == "slice":
            return torch.cat([t, torch.full_like(t, torch.nan), t], dim=1)[:, : t.shape[1]]
        if layout == "turned":
            return t.flip(0).transpose(0, -1).contiguous().transpose(0, -1).flip(0)
        return t[:1, :1].expand_as(t)

    dense = {n: t.detach() for n, t in inputs(channels=17, length=70, dtype=dtype).items()}
    if layout == "expanded":
        dense |= {n: dense[n][:1, :1].expand_as(dense[n]).contiguous() for n in SEQUENCES}
    placed = dense | {n: place(dense[n]) for n in SEQUENCES}
    assert not any(placed[n].is_contiguous() for n in SEQUENCES)
    results = [native({n: t.requires_grad_() for n, t in args.items()}) for args in (placed, dense)]
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


@pytest.mark.parametrize(
    "case", [{"batch": 5, "channels": 40}, {**ONE, "channels": 200}, {"batch": 3, "B": "constant"}]
)
def test_results_do_not_depend_on_the_number_of_threads(case):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(native(inputs(**case, length=130, dtype=torch.float32)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, tensor in results[0].items():
            assert torch.equal(tensor, other[name]), name


def test_subnormal_numbers_exist_after_a_call():
    native(inputs(dtype=torch.float32))
    assert torch.tensor(1e-39) + torch.tensor(0.0) != 0


def test_float64_is_rejected_with_a_reason():
    with pytest.raises(BackendError, match=r"it computes in float32 and u is torch\.float64"):
        selective_scan(**inputs(), backend="cpu")
