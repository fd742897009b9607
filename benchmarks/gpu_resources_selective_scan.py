"""Registers, spills and shared memory of the Triton kernels of the 1-D scan, compiled ahead of time: no GPU is needed.

    python benchmarks/gpu_resources_selective_scan.py [--targets sm_80 sm_90 gfx942] [--dtypes fp16 bf16 fp32]
        [--states 1 16 64 256]

Units as in gpu_resources.py. The launches are those of the operator, on tensors without memory: one image of 3136
pixels, 4 groups of 192 channels, with everything that is optional.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from gpu_resources import TARGETS, taken
from triton.runtime import driver, jit

from ganglion.ops.triton import selective_scan_launch as launch

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@contextlib.contextmanager
def compiling(target: str, processors: int = 132) -> Iterator[dict[str, object]]:
    """Launches inside compile for a device that is not here and run nothing; gives the compiled kernels by name."""
    device = list(TARGETS).index(target)
    found = {}
    run = jit.JITFunction.run

    class Absent:
        get_current_target = staticmethod(lambda: TARGETS[target])
        get_current_device = staticmethod(lambda: device)
        get_current_stream = staticmethod(lambda device: 0)

    def compile_only(self, *args, grid, warmup, **kwargs):
        name = self.__name__ + (", adjoint" if kwargs.get("ADJOINT") else "")
        found[name] = run(self, *args, grid=grid, warmup=True, **kwargs)

    with contextlib.ExitStack() as stack:
        for where, name, value in (
            (jit.JITFunction, "run", compile_only),
            (type(driver), "active", Absent()),
            (launch, "processors", lambda device: processors),
            (launch, "backend_of", lambda x: TARGETS[target].backend),
            (launch, "on_device", lambda x: contextlib.nullcontext()),
        ):
            stack.enter_context(mock.patch.object(where, name, value))
        yield found


def inputs(
    *,
    batch: int = 8,
    groups: int = 4,
    channels: int = 192,
    length: int = 3136,
    state: int = 16,
    dtype: torch.dtype = torch.float16,
    gate: bool = False,
    constant: bool = False,
) -> list[torch.Tensor | None]:
    """u, delta, A, B, C, D, z, delta_bias, initial_state without memory, as the operator hands them to a backend."""
    wide = groups * channels

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(batch, wide, length, dtype=dtype)
    weight = empty(wide, state) if constant else empty(batch, groups, state, length, dtype=dtype)
    return [x, x, empty(wide, state), weight, weight, empty(wide), x if gate else None, empty(wide), None]


def compiled(target: str, **shape) -> dict[str, object]:
    """The kernels of a forward and a backward call."""
    args = inputs(**shape)
    with compiling(target) as found:
        y, last_state, carry = launch.forward(*args, True)
        launch.backward(y, last_state, *args, carry, True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--dtypes", nargs="+", default=["fp16", "fp32"], choices=DTYPES)
    parser.add_argument("--states", nargs="+", type=int, default=[1, 16, 64, 256])
    args = parser.parse_args()
    print("| kernel | dtype | d_state | " + " | ".join(args.targets) + " |")
    print("|" + " --- |" * (3 + len(args.targets)))
    for dtype in args.dtypes:
        for state in args.states:
            shape = {"state": state, "gate": True, "dtype": DTYPES[dtype], "batch": 1}
            kernels = [compiled(target, **shape) for target in args.targets]
            for name in kernels[0]:
                found = [
                    " / ".join(map(str, taken(k[name], t)))
                    for k, t in zip(kernels, args.targets, strict=True)
                ]
                print(f"| {name} | {dtype} | {state} | " + " | ".join(found) + " |", flush=True)


if __name__ == "__main__":
    main()
