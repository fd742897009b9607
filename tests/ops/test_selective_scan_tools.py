"""The 1-D scan under compilers, exporters and forced backends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ganglion.ops import BackendError, selective_scan

from .test_selective_scan import NAMES, SEQUENCES, inputs, run


class Scan(nn.Module):
    def forward(self, u, delta, A, B, C, D, z, delta_bias, initial_state):
        return torch.ops.ganglion.selective_scan(
            u, delta, A, B, C, D, z, delta_bias, initial_state, True, "auto"
        )[0]


def test_compiles_without_a_break_for_any_batch_and_length():
    torch._dynamo.reset()
    compiled = torch.compile(selective_scan, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, length in [(2, 7), (3, 100), (4, 65)]:
        args = inputs(batch=batch, length=length, dtype=torch.float32)
        found, expected = run(compiled, args), run(selective_scan, args)
        for name, t in found.items():
            torch.testing.assert_close(t, expected[name])


def test_exports_with_dynamic_batch_and_length():
    args = [t.detach() for t in inputs(dtype=torch.float32).values()]
    both, sizes = {0: torch.export.Dim.DYNAMIC}, {}
    for name in NAMES:
        sizes[name] = (
            {**both, inputs()[name].ndim - 1: torch.export.Dim.DYNAMIC} if name in SEQUENCES else None
        )
    sizes["initial_state"] = both
    program = torch.export.export(Scan(), tuple(args), dynamic_shapes=sizes)
    other = [t.detach() for t in inputs(batch=3, length=90, dtype=torch.float32).values()]
    torch.testing.assert_close(program.module()(*other), Scan()(*other))


def test_scripts_and_traces():
    args = [t.detach() for t in inputs(dtype=torch.float32).values()]
    expected = Scan()(*args)
    assert torch.equal(torch.jit.script(Scan())(*args), expected)
    assert torch.equal(torch.jit.trace(selective_scan, tuple(args[:5]))(*args[:5]), selective_scan(*args[:5]))
    assert torch.equal(torch.fx.symbolic_trace(Scan())(*args), expected)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("u", torch.zeros(2, 6), ValueError, r"u has shape \(2, 6\): expected \(B, D, L\)"),
        ("u", torch.zeros(2, 6, 7, dtype=torch.int64), TypeError, "u has dtype torch.int64"),
        ("A", torch.zeros(6, 0), ValueError, "N >= 1"),
        ("A", torch.zeros(5, 2), ValueError, r"A has shape \(5, 2\): expected \(6, N\)"),
        (
            "A",
            torch.zeros(6, 2, dtype=torch.complex64),
            TypeError,
            "A has dtype torch.complex64.*the complex",
        ),
        ("B", torch.zeros(2, 4, 2, 7), ValueError, "6 channels, B 4 groups"),
        ("B", torch.zeros(2, 0, 2, 7), ValueError, "6 channels, B 0 groups"),
        ("B", torch.zeros(2, 3, 2, 7), ValueError, "B has 3 groups and C 2"),
        ("B", torch.zeros(2, 2, 14), ValueError, r"B has shape \(2, 2, 14\): expected \(2, 2, 7\)"),
        ("C", torch.zeros(2, 6), ValueError, r"C has shape \(2, 6\): expected \(6, 2\)"),
        ("C", torch.zeros(7), ValueError, r"C has shape \(7,\): expected \(6, 2\), \(2, 2, 7\) or"),
        ("delta", torch.zeros(2, 6, 8), ValueError, r"delta has shape \(2, 6, 8\): expected \(2, 6, 7\)"),
        ("D", torch.zeros(5), ValueError, r"D has shape \(5,\): expected \(6,\)"),
        ("z", torch.zeros(2, 1, 7), ValueError, r"z has shape \(2, 1, 7\): expected \(2, 6, 7\)"),
        ("delta_bias", torch.zeros(6, 1), ValueError, r"delta_bias has shape \(6, 1\): expected \(6,\)"),
        ("initial_state", torch.zeros(6, 2), ValueError, r"initial_state has .*expected \(2, 6, 2\)"),
        ("z", torch.zeros(2, 6, 7, device="meta"), ValueError, "z is on meta, u on cpu"),
        ("A", torch.zeros(6, 2, device="meta"), ValueError, "A is on meta, u on cpu"),
    ],
)
def test_wrong_arguments_are_named(name, value, error, message):
    args = inputs(dtype=torch.float32) | {name: value}
    with pytest.raises(error, match=message):
        selective_scan(**args)


@pytest.mark.parametrize(
    ("name", "dtype"), [("A", torch.bfloat16), ("B", torch.float64), ("initial_state", torch.float64)]
)
def test_the_operator_itself_names_dtypes_that_do_not_go_together(name, dtype):
    args = inputs(dtype=torch.bfloat16)
    args[name] = args[name].to(dtype)
    with pytest.raises(TypeError, match=f"{name} has dtype {dtype}"):
        torch.ops.ganglion.selective_scan(*args.values(), True, "auto")


def test_a_backend_can_be_forced_and_forbidden():
    args = inputs(dtype=torch.float32)
    with pytest.raises(BackendError, match="no backend serves selective_scan"):
        selective_scan(**args, backend="triton")
    with pytest.raises(ValueError, match="backend: unknown backend 'gpu'"):
        selective_scan(**args, backend="gpu")
