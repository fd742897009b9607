"""The Triton kernels of the 1-D scan, run by Triton's interpreter on CPU tensors.

Not collected by name, as `triton_interpreted.py`: `test_triton_selective_scan.py` runs it in a process of its own; by
hand:

    TRITON_INTERPRET=1 python -m pytest tests/ops/triton_selective_scan_interpreted.py
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ganglion.ops import selective_scan, selective_scan_reference
from ganglion.ops.routes import CHUNK
from ganglion.ops.triton import selective_scan_launch as launch
from tests.ops import test_selective_scan_nonfinite as nonfinite
from tests.ops.test_selective_scan import NAMES, exact, inputs
from tests.ops.triton_interpreted import _fast_interpreter  # noqa: F401
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("poison")

ALL = 10**6  # chunks of a segment: the sequential form
ONE = {"batch": 1, "groups": 1}


def call(args: dict[str, Tensor], softplus: bool = True, **how) -> dict[str, Tensor]:
    """y, the last state and every gradient by the kernels, split as told."""
    split = launch.Split(**{"block_d": 16, "steps": 16, "walks": 1, "segment_chunks": ALL, **how})
    given = [args[name].detach() if name in args else None for name in NAMES]
    weights = [t[:, None] if t.ndim == 3 else t for t in given[3:5]]
    tensors = [*given[:3], *weights, *given[5:]]
    y, last_state, carry = launch.forward(*tensors, softplus, split)
    grad_y, grad_last_state = cotangents(y, last_state)
    grads = launch.backward(grad_y, grad_last_state, *tensors, carry, softplus, split)
    found = {"y": y, "last_state": last_state}
    for name, tensor, grad in zip(NAMES, given, grads, strict=True):
        assert (grad is None) == (tensor is None), name
        if tensor is not None:
            assert grad.dtype == tensor.dtype and grad.is_contiguous(), name
            found[name] = grad.reshape(tensor.shape)
    return found


def cotangents(y: Tensor, last_state: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(t.shape, generator=generator).to(t.dtype) for t in (y, last_state)]


def check(case: dict, args: dict[str, Tensor] | None = None, softplus: bool = True, **how) -> None:
    """Forward and every gradient of the kernels against the float64 reference."""
    args = inputs(**{"dtype": torch.float32, **case}) if args is None else args
    found = call(args, softplus, **how)
    leaves = exact(args)
    results = selective_scan_reference(**leaves, delta_softplus=softplus, return_last_state=True)
    given = [g.double() for g in cotangents(found["y"], found["last_state"])]
    grads = torch.autograd.grad(results, list(leaves.values()), given)
    wanted = {"y": results[0], "last_state": results[1], **dict(zip(leaves, grads, strict=True))}
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert_close(tensor, wanted[name], args["u"].dtype, name)


# The last of three chunks is one step and a tile long.
@pytest.mark.parametrize("segment_chunks", [2, ALL])
def test_both_parallel_forms(segment_chunks):
    check({**ONE, "channels": 3, "length": 145, "state": 1}, segment_chunks=segment_chunks)


def test_larger_tiles():
    check({**ONE, "channels": 3, "length": 70}, steps=64)


def test_groups_and_more_channels_than_a_block():
    check({"groups": 2, "channels": 19, "length": 6, "state": 3})


@pytest.mark.parametrize("channels", [32, 37])
def test_a_program_that_walks_several_blocks(channels):
    """37: the second slice has one block less than the first."""
    check({"batch": 1, "channels": channels, "length": 18, "state": 1}, walks=2)


def test_sizes_that_fill_every_block():
    """No masks, and the last chunk is only partly there."""
    check({**ONE, "channels": 16, "length": 80, "state": 1})


@pytest.mark.parametrize(("state", "segment_chunks"), [(4, 1), (17, ALL), (100, ALL)])
def test_any_number_of_states(state, segment_chunks):
    length = 66 if segment_chunks == 1 else 3
    check({**ONE, "channels": 2, "length": length, "state": state}, segment_chunks=segment_chunks)


CASES = {
    "constant_B": {"B": "constant"},
    "constant_C": {"C": "constant"},
    "constant_both": {"B": "constant", "C": "constant"},
    "shared": {"groups": 1, "B": "shared", "C": "shared"},
    "without_anything": {"without": NAMES[5:]},
    "without_gate": {"without": ("z",)},
    "without_skip": {"without": ("D",)},
    "without_bias": {"without": ("delta_bias",)},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("case", CASES)
def test_arguments(case):
    check({"length": 5, **CASES[case]})


@pytest.mark.parametrize("segment_chunks", [1, ALL])
def test_constant_weights_of_several_tiles_and_images(segment_chunks):
    case = {"groups": 1, "B": "constant", "C": "constant", "length": 66, "state": 1}
    check(case, segment_chunks=segment_chunks)


def test_without_softplus():
    args = inputs(length=5, dtype=torch.float32)
    args["delta"] = args["delta"].detach().abs() + 1
    check({}, args, softplus=False)


@pytest.mark.parametrize("segment_chunks", [1, ALL])
def test_extremes(segment_chunks):
    """Decays that underflow, and steps on the linear branch of softplus."""
    args = inputs(**ONE, channels=4, length=66, state=1, dtype=torch.float32)
    args["A"] = args["A"].detach() * 100
    args["delta_bias"] = torch.tensor([60.0, -40.0, 0.0, -5.0])
    check({}, args, segment_chunks=segment_chunks)


def test_tensors_are_read_where_they_lie():
    """Steps and channels anywhere in memory, as transposed and chunked tensors have them."""
    args = inputs(groups=2, channels=3, length=18, dtype=torch.float32)
    for name in ("u", "z"):
        args[name] = args[name].detach().mT.contiguous().mT
    args["delta"] = args["delta"].detach().repeat_interleave(2, dim=1)[:, ::2]
    args["B"] = args["B"].detach().permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    args["C"] = args["C"].detach()[:, :1].expand(-1, 2, -1, -1)
    check({}, args)


def test_addresses_of_64_bits(monkeypatch):
    constants = launch.constants
    monkeypatch.setattr(launch, "constants", lambda **kw: {**constants(**kw), "WIDE": True})
    check({"length": 5})


@pytest.mark.parametrize("segment_chunks", [1, ALL])
def test_carry_is_the_state_before_every_chunk(segment_chunks):
    """Of the same shape and meaning in every backend."""
    args = [t.detach() for t in inputs(**ONE, length=130, dtype=torch.float32).values()]
    split = launch.Split(block_d=16, steps=64, walks=1, segment_chunks=segment_chunks)
    carry = launch.forward(*args, True, split)[2]
    expected = torch.ops.ganglion.selective_scan(*args, True, "torch")[2]
    assert carry.shape == (1, -(-130 // CHUNK), 2, 3)
    assert_close(carry.flatten(1), expected)


def test_runs_are_equal_bit_for_bit():
    args = inputs(batch=2, groups=1, channels=19, length=5, state=1, dtype=torch.float32)
    first, second = (call(args, walks=2) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_through_the_operator():
    """`selective_scan` reaches these kernels, with autograd, and opcheck holds for it."""
    args = inputs(batch=1, groups=1, length=3, state=1, dtype=torch.float32)
    y, last_state = selective_scan(**args, delta_softplus=True, return_last_state=True, backend="triton")
    grads = torch.autograd.grad(y.square().sum() + last_state.sum(), list(args.values()))
    leaves = exact(args)
    y, last_state = selective_scan_reference(**leaves, delta_softplus=True, return_last_state=True)
    expected = torch.autograd.grad(y.square().sum() + last_state.sum(), list(leaves.values()))
    for name, found, wanted in zip(args, grads, expected, strict=True):
        assert_close(found, wanted, name=name)
    torch.use_deterministic_algorithms(False)  # opcheck compares memory that no one has to write
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    call_args = (*(t.detach().requires_grad_() for t in args.values()), True, "triton")
    torch.library.opcheck(torch.ops.ganglion.selective_scan, call_args, test_utils=checks)


@pytest.mark.filterwarnings("ignore:.*encountered")
def test_infinite_values_and_nan_stay_where_the_reference_has_them():
    wanted = {
        f"{value} in {name}" for value, name in (("inf", "u"), ("inf", "C"), ("nan", "delta"), ("nan", "z"))
    }
    seen = set()
    for case, args, grads, expected in nonfinite.cases("few_channels"):
        if case in wanted:
            nonfinite.compare("triton", case, args, grads, expected)
            seen.add(case)
    assert seen == wanted
    nonfinite.check_sums("triton")
