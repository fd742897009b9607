"""Accuracy, speed and memory of the 1-D scan on a CPU: `OMP_NUM_THREADS=1 python benchmarks/selective_scan.py`.

It is compared with the loop over positions that published code falls back to (`selective_scan_ref`, written here from
its formula), with the parallel scan of `mambapy` if that is installed, and with `torch.exp` of as many elements as
there are (channel, state, step) triples. Results are compared first. Times are medians of ratios of calls that
alternate in this process, because the cores of most machines are shared and change their clock.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from scan_cpu import alternate, ratio, verdict
from torch import Tensor

from ganglion.ops import cpu, selective_scan

HAS_MAMBAPY = importlib.util.find_spec("mambapy") is not None
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


@dataclass(frozen=True, kw_only=True)
class Shape:
    batch: int = 1
    groups: int = 4
    channels: int = 192  # of a group
    length: int = 3136
    state: int = 16

    def __str__(self) -> str:
        return f"B {self.batch}, G {self.groups}, D {self.channels}, L {self.length}, N {self.state}"

    @property
    def elements(self) -> int:
        """(channel, state, step) triples."""
        return self.batch * self.groups * self.channels * self.length * self.state

    def inputs(self) -> dict[str, Tensor]:
        torch.manual_seed(0)
        wide = self.groups * self.channels
        sequence, weights = (
            (self.batch, wide, self.length),
            (self.batch, self.groups, self.state, self.length),
        )
        tensors = {
            "u": torch.randn(sequence),
            "delta": torch.randn(sequence),
            "A": -torch.arange(1.0, self.state + 1).repeat(wide, 1),
            "B": torch.randn(weights),
            "C": torch.randn(weights),
            "D": torch.ones(wide),
            "delta_bias": torch.randn(wide) - 4,
        }
        return {name: t.requires_grad_() for name, t in tensors.items()}


def ours(u, delta, A, B, C, D, delta_bias) -> Tensor:
    return selective_scan(u, delta, A, B, C, D, None, delta_bias, True)


def loop(u, delta, A, B, C, D, delta_bias) -> Tensor:
    """Everything that does not depend on the state for all positions at once, then the positions one by one."""
    dt = F.softplus(delta + delta_bias[:, None])
    B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], dim=1) for t in (B, C))
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    step = torch.einsum("bdl,bdnl,bdl->bdln", dt, B, u)
    h, ys = A.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + step[:, :, t]
        ys.append(torch.einsum("bdn,bdn->bd", h, C[..., t]))
    return torch.stack(ys, dim=2) + u * D[:, None]


def mambapy(u, delta, A, B, C, D, delta_bias) -> Tensor:
    """One group, as mambapy's blocks call its scan."""
    from mambapy.pscan import pscan

    x, dt = u.mT, F.softplus(delta + delta_bias[:, None]).mT
    decay = torch.exp(dt[..., None] * A)
    step = dt[..., None] * B[:, 0].mT[:, :, None] * x[..., None]
    y = (pscan(decay, step) @ C[:, 0].mT[..., None])[..., 0] + D * x
    return y.mT


def with_gradients(scan: Callable[..., Tensor], inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    y = scan(**inputs)
    return y.detach(), *torch.autograd.grad(y, list(inputs.values()), torch.ones_like(y))


def without_gradients(scan: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return scan(**inputs)


def accuracy() -> None:
    print("\nAccuracy: relative RMS error against the loop in float64 (bounds: y 1e-5, gradients 2e-5)")
    for shape in (Shape(channels=33, length=300, state=n) for n in (1, 16)):
        inputs = shape.inputs()
        exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
        expected = with_gradients(loop, exact)
        scans = {"ours": ours, "the loop": loop}
        for told, scan in scans.items():
            compare(f"{told}, N {shape.state}", with_gradients(scan, inputs), expected)
    if HAS_MAMBAPY:
        shape = Shape(groups=1, channels=33, length=300)
        inputs = shape.inputs()
        exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
        compare("mambapy, N 16", with_gradients(mambapy, inputs), with_gradients(loop, exact))


def compare(told: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    names = ("y", *(f"d{name}" for name in NAMES))
    print(f"  {told:16}", "  ".join(f"{n} {e:.0e}" for n, e in zip(names, errors, strict=True)))
    if errors[0] > 1e-5 or max(errors) > 2e-5:
        sys.exit("the results differ: speed does not matter")


def at_least(value: float, bound: float) -> str:
    return f"{value:7.1f} x {'ok' if value >= bound else 'MISSED'}"


def spread(a: list[float], b: list[float]) -> str:
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return f"({min(ratios):.1f} to {max(ratios):.1f})"


def against_the_loop(repeats: int) -> None:
    print("\nHow many times as fast as the loop (bound 40)")
    for told, run, shape in (
        ("forward", without_gradients, Shape()),
        ("forward and backward", with_gradients, Shape(length=196)),
        ("forward, N 1", without_gradients, Shape(state=1)),
        ("forward and backward, N 1", with_gradients, Shape(length=196, state=1)),
    ):
        inputs = shape.inputs()
        calls = {
            name: lambda scan=scan, run=run, inputs=inputs: run(scan, inputs)
            for name, scan in (("loop", loop), ("ours", ours))
        }
        seconds = alternate(calls, repeats)
        faster = ratio(seconds["loop"], seconds["ours"])
        bound = 40 if shape.state == 16 else 0
        times = "  ".join(f"{name} {statistics.median(s) * 1e3:.1f} ms" for name, s in seconds.items())
        print(
            f"  {told:26} {shape!s:33} {at_least(faster, bound)} {spread(seconds['loop'], seconds['ours'])}  {times}"
        )


def against_exp(repeats: int) -> None:
    print(
        "\nNanoseconds per (channel, state, step), and ratios to torch.exp of as many elements into memory that is\n"
        "there already / that it allocates (bounds, of the latter: forward 1.3, forward and backward 5)"
    )
    for shape in (Shape(state=1), Shape(state=8), Shape(), Shape(length=784, state=64)):
        inputs, elements = shape.inputs(), torch.randn(shape.elements)
        memory = torch.empty_like(elements)
        calls = {
            "exp there": lambda x=elements, out=memory: torch.exp(x, out=out),
            "exp": lambda x=elements: torch.exp(x),
            "forward": lambda inputs=inputs: without_gradients(ours, inputs),
            "both": lambda inputs=inputs: with_gradients(ours, inputs),
        }
        seconds = alternate(calls, repeats)
        told = "  ".join(
            f"{name} {statistics.median(s) / shape.elements * 1e9:.2f}" for name, s in seconds.items()
        )
        forward, both = (
            f"{name} {ratio(seconds[name], seconds['exp there']):.2f} /"
            f"{verdict(ratio(seconds[name], seconds['exp']), bound)}"
            for name, bound in (("forward", 1.3), ("both", 5.0))
        )
        print(f"  N {shape.state:<3} {told}   {forward}  {both}")


def against_mambapy(repeats: int) -> None:
    if not HAS_MAMBAPY:
        print("\nmambapy is not installed: pip install --no-deps mambapy")
        return
    print(f"\nHow many times as fast as mambapy {importlib.metadata.version('mambapy')} (bound 1)")
    for state, length, batch in (
        (1, 3136, 1),
        (8, 1024, 1),
        (16, 3136, 1),
        (16, 1024, 4),
        (16, 196, 1),
        (64, 784, 1),
    ):
        shape = Shape(batch=batch, groups=1, length=length, state=state)
        inputs, faster = shape.inputs(), []
        for run in (without_gradients, with_gradients):
            calls = {
                name: lambda scan=scan, run=run, inputs=inputs: run(scan, inputs)
                for name, scan in (("mambapy", mambapy), ("ours", ours))
            }
            seconds = alternate(calls, repeats)
            faster.append(at_least(ratio(seconds["mambapy"], seconds["ours"]), 1))
        print(f"  {shape!s:34} forward {faster[0]}   forward and backward {faster[1]}")


def memory() -> None:
    print("\nMemory that a forward and a backward pass add at their peak, in tensors of the size of u")
    if not sys.platform.startswith("linux"):
        print("  not measured: only Linux can reset the peak of a process")
        return
    for state in (1, 16, 64):
        told = []
        for length in (3136, 12544):
            command = [sys.executable, __file__, "--memory-of", str(length), str(state)]
            told.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        recorded, weights = state / 64, 2 * state / 192
        print(
            f"  N {state:<3} L 3136: {told[0]}   L 12544: {told[1]}   "
            f"(of which states {recorded:.2f}; B and C are {weights:.2f} themselves)"
        )


def memory_of(length: int, state: int) -> None:
    """Prints by how much the peak resident size exceeds what was resident before."""

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

    with_gradients(ours, Shape(length=2, state=state).inputs())
    inputs = Shape(length=length, state=state).inputs()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = resident("VmRSS")
    results = with_gradients(ours, inputs)
    print(f"{(resident('VmHWM') - before) / inputs['u'].nbytes:.2f}")
    del results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7, help="measurements for each median")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if (why := cpu.unavailable()) is not None:
        sys.exit(why)
    if args.memory_of is not None:
        memory_of(*args.memory_of)
        return
    isa = os.environ.get(cpu.ISA_ENV, cpu.instruction_sets()[0])
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}, {platform.machine()}\n"
        f"instruction set {isa} of {', '.join(cpu.instruction_sets())}; "
        f"torch's {torch.backends.cpu.get_cpu_capability()}; "
        f"{args.threads} thread(s), OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'default')}"
    )
    accuracy()
    against_exp(args.repeats)
    memory()
    against_mambapy(max(1, args.repeats // 2))
    against_the_loop(max(1, args.repeats // 2))


if __name__ == "__main__":
    main()
