"""Accuracy, speed and memory of the native CPU scan: `python benchmarks/scan_cpu.py`.

Accuracy comes first and ends the program if it is not met. Times are ratios of calls that alternate in this process,
medians over `--repeats` of them, because the cores of most machines are shared and change their clock. The yardstick is
`torch.nn.functional.softplus` on a float32 tensor of K * D * L elements, the step sizes that the fused scan never
writes to memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ganglion.ops import PATTERNS, cpu, scan2d_reference

ROUTES = PATTERNS["cross2d"]
CODES = [route.code for route in ROUTES]
NAMES = ("x", "proj", "dt_weight", "dt_bias", "A", "D")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Shape:
    side: int = 56
    batch: int = 1
    channels: int = 192
    rank: int = 6
    state: int = 1
    dtype: str = "fp32"

    @property
    def elements(self) -> int:
        """(route, channel, pixel) triples."""
        return self.batch * len(ROUTES) * self.channels * self.side**2

    def inputs(self) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        routes, channels, dtype = len(ROUTES), self.channels, DTYPES[self.dtype]
        x = torch.randn(self.batch, self.side, self.side, channels).to(dtype)
        proj = torch.randn(self.batch, self.side, self.side, routes * (self.rank + 2 * self.state)).to(dtype)
        weight = torch.randn(routes, channels, self.rank) * self.rank**-0.5
        A = -torch.exp(0.3 * torch.randn(routes, channels, self.state))
        return x, proj, weight, torch.randn(routes, channels) - 3, A, torch.randn(routes, channels)

    def calls(self) -> tuple[Callable[[], object], Callable[[], object]]:
        """A forward and a backward pass."""
        inputs = self.inputs()
        y, carry = cpu.scan2d.forward(*inputs, CODES)
        grad_y = torch.randn(y.shape).to(y.dtype)
        return (
            lambda: cpu.scan2d.forward(*inputs, CODES),
            lambda: cpu.scan2d.backward(grad_y, *inputs, carry, CODES),
        )


def alternate(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, taken in turns after one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def verdict(value: float, bound: float) -> str:
    return f"{value:6.2f} {'ok' if value <= bound else 'MISSED':6}"


def accuracy() -> None:
    print("\nAccuracy: relative RMS error against float64 (bound 1e-5)")
    for shape in (Shape(side=28, rank=6), Shape(side=14, rank=12, channels=100, state=16)):
        inputs = shape.inputs()
        y, carry = cpu.scan2d.forward(*inputs, CODES)
        grad_y = torch.randn_like(y)
        results = y, *cpu.scan2d.backward(grad_y, *inputs, carry, CODES)
        exact = [t.double().requires_grad_() for t in inputs]
        y_exact = scan2d_reference(*exact, ROUTES)
        expected = y_exact.detach(), *torch.autograd.grad(y_exact, exact, grad_y.double())
        errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(results, expected, strict=True)]
        told = "  ".join(
            f"{n} {e:.1e}" for n, e in zip(("y", *(f"d{n}" for n in NAMES)), errors, strict=True)
        )
        print(f"  N={shape.state:<3} {told}")
        if max(errors) > 1e-5:
            sys.exit("the kernels are wrong: their speed does not matter")


def speed(repeats: int) -> None:
    print(
        "\nSpeed in ns per (route, channel, pixel); bounds: forward <= softplus for N = 1, backward <= 3.5 forward"
    )
    print(f"  {'shape':34} {'softplus':>8} {'forward':>8} {'backward':>8}  fwd/softplus   bwd/fwd")
    shapes = (
        Shape(),
        Shape(rank=12),
        Shape(dtype="bf16"),
        Shape(dtype="fp16"),
        Shape(channels=96),
        Shape(side=28, channels=384, rank=12),
        Shape(side=14, channels=768, rank=24, batch=2),
        Shape(side=7, channels=1536, rank=48, batch=2),
        Shape(state=16),
    )
    for shape in shapes:
        forward, backward = shape.calls()
        steps = torch.randn(shape.elements)
        softplus = lambda steps=steps: F.softplus(steps)  # noqa: E731
        seconds = alternate(
            {"softplus": softplus, "forward": forward, "backward": backward},
            repeats if shape.state == 1 else 3,
        )
        told = " ".join(f"{statistics.median(s) / shape.elements * 1e9:8.2f}" for s in seconds.values())
        size = f"{shape.batch}x{shape.side}x{shape.side}"
        name = f"{size} D={shape.channels} R={shape.rank} N={shape.state} {shape.dtype}"
        to_softplus = ratio(seconds["forward"], seconds["softplus"])
        bound = 1.0 if shape.state == 1 else float("inf")
        print(
            f"  {name:34} {told}  {verdict(to_softplus, bound)}"
            f" {verdict(ratio(seconds['backward'], seconds['forward']), 3.5)}"
        )


def growth(repeats: int) -> None:
    print("\nTime per pixel against 56x56 maps (bound 1.15)")
    small = Shape().calls()
    for side in (112, 256):
        # As many small maps as make up the pixels of the large one, so that both meet the same disturbances.
        maps = round((side / 56) ** 2)
        seconds = alternate(
            {
                f"{direction}{size}": lambda call=call, times=times: [call() for _ in range(times)]
                for size, calls, times in ((56, small, maps), (side, Shape(side=side).calls(), 1))
                for direction, call in zip(("forward", "backward"), calls, strict=True)
            },
            repeats,
        )
        pixels = side**2 / (maps * 56**2)
        ratios = [ratio(seconds[f"{d}{side}"], seconds[f"{d}56"]) / pixels for d in ("forward", "backward")]
        print(f"  {side}x{side}: forward {verdict(ratios[0], 1.15)} backward {verdict(ratios[1], 1.15)}")


def memory() -> None:
    print(
        "\nMemory that a forward and a backward pass add at their peak, in tensors of the size of x (D=192)"
    )
    if not sys.platform.startswith("linux"):
        print("  not measured: only Linux can reset the peak of a process")
        return
    for side in (112, 224, 448):
        command = [sys.executable, __file__, "--memory-of", str(side)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        print(f"  {side}x{side}: forward {float(told[0]):.2f}, backward {float(told[1]):.2f}")


def memory_of(side: int) -> None:
    """Prints by how much the peak resident size exceeds what was resident before each pass."""

    def resident(field: str) -> int:
        line = next(
            line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)
        )
        return int(line.split()[1]) * 1024

    def added(call: Callable[[], tuple[Tensor | None, ...]]) -> tuple[float, tuple[Tensor | None, ...]]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        before = resident("VmRSS")
        results = call()
        return (resident("VmHWM") - before) / inputs[0].nbytes, results

    Shape(side=4).calls()[1]()
    inputs = Shape(side=side).inputs()
    grad_y = torch.ones_like(inputs[0])
    forward, results = added(lambda: cpu.scan2d.forward(*inputs, CODES))
    carry = results[1]
    backward, _ = added(lambda: cpu.scan2d.backward(grad_y, *inputs, carry, CODES))
    print(forward, backward)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="measurements for each median")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if (why := cpu.unavailable()) is not None:
        sys.exit(why)
    if args.memory_of is not None:
        memory_of(args.memory_of)
        return
    isa = os.environ.get(cpu.ISA_ENV, cpu.instruction_sets()[0])
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}, {platform.machine()}\n"
        f"instruction set {isa} of {', '.join(cpu.instruction_sets())}; "
        f"torch's {torch.backends.cpu.get_cpu_capability()}; "
        f"{args.threads} thread(s), OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'default')}"
    )
    accuracy()
    speed(args.repeats)
    growth(args.repeats)
    memory()


if __name__ == "__main__":
    main()
