"""VMamba on a CPU against what a user would pick instead, and against a scan that loops in Python.

    python benchmarks/cpu.py [--threads 2] [--batch 4] [--rounds 7] [--clock process]
        [--only inference-fp32 inference-bf16 training-fp32 compiled loop sizes roofline]

Logits are checked against the golden float64 reference first. All models of a table then run in turn in one process;
the figures are medians of the ratios of the rounds, as the speed of shared machines changes from second to second.
On a machine that other work keeps busy, `--clock process --threads 1` counts the time on a processor and no waiting.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(Path(__file__).parents[1])]

import ganglion
from benchmarks._networks import build, paired_ratio, settings
from ganglion.analysis.timing import inference, seconds_in_turn, training
from ganglion.layers.ss2d import SS2D
from ganglion.ops import Route, selective_scan_reference
from tests.golden_data import image, load

REFERENCE = "swin_tiny_patch4_window7_224"
MODELS = (
    REFERENCE,
    "convnext_tiny",
    "mambaout_tiny",
    "vmamba_tiny_s1l8",
    "vmamba_tiny_s2l5",
    "sparx_mamba_tiny",
)
#: What the others are measured over, with a heading.
REFERENCES = {
    REFERENCE: "Swin-T",
    "convnext_tiny": "ConvNeXt-T",
    "mambaout_tiny": "MambaOut-T",
    "vmamba_tiny_s2l5": "VMamba-T s2l5",
}
COMPILED = ("convnext_tiny", "vmamba_tiny_s1l8", "sparx_mamba_tiny")
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
EXTRA = ("compiled", "loop", "sizes", "roofline")
SIZES = (224, 384, 512, 768, 1024)
TABLES = {
    "inference-fp32": (torch.float32, False),
    "inference-bf16": (torch.bfloat16, False),
    "training-fp32": (torch.float32, True),
}


def check() -> None:
    """Raise unless the logits are those of the published network."""
    golden = load("vmamba/vmamba_tiny_s1l8")
    model = build("vmamba_tiny_s1l8", torch.float32, train=False)
    ganglion.load_checkpoint(model, golden.state_dict())
    with torch.inference_mode():
        logits = model(image(2, 224, 224, 0))
    error = (logits - golden["2x3x224x224.s0.logits_f64"]).abs().max().item()
    if not error <= 8e-6:
        raise SystemExit(f"logits are off by {error:.1e}, bound 8e-6: nothing was timed")
    print(f"logits of vmamba_tiny_s1l8 within {error:.1e} of the published network in float64\n")


def loop_scan(
    self: SS2D, x: Tensor, height: int, width: int, weights: list[Tensor], routes: list[int]
) -> Tensor:
    """`SS2D._scan` as the published CPU path does it: four copies of the map, a Python loop over positions."""
    x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds = weights
    B, _, D = x.shape
    orders = [Route.from_code(code).order(height, width) for code in routes]
    K, R, N = len(orders), self.dt_rank, self.d_state
    xs_BKLD = torch.stack([x[:, order] for order in orders], dim=1)
    low, b, c = torch.einsum("bkld,kpd->bkpl", xs_BKLD, x_proj_weight).split([R, N, N], dim=2)
    delta = torch.einsum("bkrl,kdr->bkdl", low, dt_projs_weight)
    ys = selective_scan_reference(
        xs_BKLD.mT.reshape(B, K * D, -1),
        delta.reshape(B, K * D, -1),
        -A_logs.exp(),
        b,
        c,
        Ds,
        dt_projs_bias.flatten(),
        True,
    ).view(B, K, D, -1)
    y = torch.zeros_like(x)
    for k, order in enumerate(orders):
        y[:, order] += ys[:, k].mT
    return y


def table(title: str, dtype: torch.dtype, train: bool, args: argparse.Namespace) -> None:
    step = training if train else inference
    x = torch.randn(args.batch, 3, args.size, args.size).to(dtype=dtype, memory_format=torch.channels_last)
    models = {name: build(name, dtype, train=train) for name in MODELS}
    steps = {name: lambda model=model: step(model, x) for name, model in models.items()}
    seconds = seconds_in_turn(steps, args.rounds, clock=CLOCKS[args.clock])
    print(
        f"{title}: batch {args.batch}, {args.size} x {args.size}, {args.rounds} rounds, {args.clock} time; speed over"
    )
    print(f"  {'':24}{'images/s':>9}{'ms':>7}" + "".join(f"{label:>22}" for label in REFERENCES.values()))
    for name, times in seconds.items():
        median = statistics.median(times)
        ratios = (paired_ratio(seconds[reference], times) for reference in REFERENCES)
        cells = "".join(f"{ratio:8.2f} ({low:.2f} to {high:.2f})" for ratio, low, high in ratios)
        print(f"  {name[:23]:24}{args.batch / median:9.1f}{1e3 * median:7.0f}{cells}")
    print()


def compiled_table(args: argparse.Namespace) -> None:
    """Networks by `torch.compile` over the same in eager mode."""
    x = torch.randn(args.batch, 3, args.size, args.size).contiguous(memory_format=torch.channels_last)
    steps: dict[str, Callable[[], None]] = {}
    for name in COMPILED:
        model = build(name, torch.float32, train=False)
        run = torch.compile(model)
        start = time.perf_counter()
        inference(run, x)
        print(f"  {name}: compiled in {time.perf_counter() - start:.0f} s")
        steps[name] = lambda model=model: inference(model, x)
        steps[f"{name} compiled"] = lambda run=run: inference(run, x)
    seconds = seconds_in_turn(steps, args.rounds, clock=CLOCKS[args.clock])
    print(
        f"compiled: batch {args.batch}, {args.size} x {args.size}, {args.rounds} rounds; "
        "speed over eager, over ConvNeXt-T compiled"
    )
    for name in COMPILED:
        over_eager = paired_ratio(seconds[name], seconds[f"{name} compiled"])
        over_other = paired_ratio(seconds["convnext_tiny compiled"], seconds[f"{name} compiled"])
        cells = (f"{ratio:8.2f} ({low:.2f} to {high:.2f})" for ratio, low, high in (over_eager, over_other))
        print(f"  {name:24}{''.join(cells)}")
    print()


def roofline(args: argparse.Namespace) -> None:
    """What a network must compute and move at least, over what this machine does in a second, beside what it takes.

    Bytes: the tensors of each of PyTorch's operations, read and written once. Rates: of a product of stage 3, a copy of
    20 MB, per second of the clock.
    """
    clock = CLOCKS[args.clock]
    a, b, out = torch.randn(784, 320), torch.randn(320, 1280), torch.empty(784, 1280)
    source, target = torch.randn(5 << 20), torch.empty(5 << 20)
    steps = {"product": lambda: torch.mm(a, b, out=out), "copy": lambda: target.copy_(source)}
    x = torch.randn(args.batch, 3, args.size, args.size).contiguous(memory_format=torch.channels_last)
    networks = {name: build(name, torch.float32, train=False) for name in MODELS}
    steps |= {name: lambda model=model: inference(model, x) for name, model in networks.items()}
    seconds = {
        name: statistics.median(t) for name, t in seconds_in_turn(steps, args.rounds, clock=clock).items()
    }
    rate = 2 * 784 * 320 * 1280 / seconds["product"]
    bandwidth = 2 * 4 * source.numel() / seconds["copy"]
    print(
        f"roofline: {rate / 1e9:.0f} GFLOP/s in products, {bandwidth / 1e9:.1f} GB/s in copies, "
        f"float32, batch {args.batch}"
    )
    print(f"  {'':24}{'GFLOP':>8}{'GB moved':>10}{'ms products':>13}{'ms memory':>11}{'ms measured':>13}")
    for name, network in networks.items():
        flops, moved = _work(network, x)
        cells = (1e3 * flops / rate, 1e3 * moved / bandwidth, 1e3 * seconds[name])
        print(
            f"  {name[:23]:24}{flops / 1e9:8.1f}{moved / 1e9:10.2f}{cells[0]:13.0f}{cells[1]:11.0f}{cells[2]:13.0f}"
        )
    print()


#: Operators that only look at memory.
_VIEWS = {
    "view",
    "t",
    "permute",
    "transpose",
    "unflatten",
    "flatten",
    "split",
    "slice",
    "select",
    "expand",
    "detach",
}
_VIEWS |= {
    "_unsafe_view",
    "empty",
    "empty_like",
    "new_empty",
    "unsqueeze",
    "squeeze",
    "as_strided",
    "split_with_sizes",
}


def _work(network: torch.nn.Module, x: Tensor) -> tuple[int, int]:
    """Floating-point operations of a forward pass, and bytes of the tensors that its operators read and write."""
    moved = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal moved
            found = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ not in _VIEWS:
                tensors = {id(t): t for t in tree_leaves((args, kwargs, found)) if isinstance(t, Tensor)}
                moved += sum(t.numel() * t.element_size() for t in tensors.values())
            return found

    with FlopCounterMode(display=False) as counter, Count(), torch.no_grad():
        network(x)
    return counter.get_total_flops(), moved


def loop_table(size: int) -> None:
    """One image: the Python loop takes seconds."""
    x = torch.randn(1, 3, size, size)
    model = build("vmamba_tiny_s1l8", torch.float32, train=False)
    rows = {}
    for title, step in (("inference", inference), ("training step", training)):
        model.train(step is training)
        fused = statistics.median(seconds_in_turn({"": lambda step=step: step(model, x)}, 5)[""])
        with mock.patch.object(SS2D, "_scan", loop_scan):
            if step is inference:
                difference = (model(x) - logits_fused(model, x)).abs().max().item()
                if difference > 1e-4:
                    raise SystemExit(f"loop and fused scan differ by {difference:.1e}")
            loop = statistics.median(seconds_in_turn({"": lambda step=step: step(model, x)}, 1)[""])
        rows[title] = (fused, loop)
    print(
        f"vmamba_tiny_s1l8, batch 1, {size} x {size}, fp32: fused scan against a Python loop over positions"
    )
    for title, (fused, loop) in rows.items():
        print(f"  {title:16}{1e3 * fused:8.0f} ms{1e3 * loop:10.0f} ms   {loop / fused:.1f} x")
    print()


def size_table(args: argparse.Namespace) -> None:
    """Time per pixel: linear in the pixels means the same at every size. Swin-T beside it."""
    model = build("vmamba_tiny_s1l8", torch.float32, train=False)
    swins = {size: build(REFERENCE, torch.float32, train=False, img_size=size) for size in SIZES}
    images = {size: torch.randn(1, 3, size, size) for size in SIZES}
    steps: dict[str, Callable[[], None]] = {}
    for size, x in images.items():
        steps[str(size)] = lambda x=x: inference(model, x)
        steps[f"swin {size}"] = lambda x=x, swin=swins[size]: inference(swin, x)
    seconds = seconds_in_turn(steps, args.rounds, clock=CLOCKS[args.clock])
    print(
        f"vmamba_tiny_s1l8, batch 1, fp32, inference, {args.rounds} rounds: time per pixel; "
        "speed over Swin-T at that size"
    )
    per_pixel = {size: [t / size**2 for t in seconds[str(size)]] for size in SIZES}
    for size, times in per_pixel.items():
        ratio, low, high = paired_ratio(times, per_pixel[SIZES[0]])
        over, least, most = paired_ratio(seconds[f"swin {size}"], seconds[str(size)])
        print(
            f"  {size:6}{1e9 * statistics.median(times):9.0f} ns   {ratio:.2f} x {SIZES[0]} ({low:.2f} to {high:.2f})"
            f"   {over:.2f} ({least:.2f} to {most:.2f})"
        )
    print()


def logits_fused(model: torch.nn.Module, x: Tensor) -> Tensor:
    with mock.patch.object(SS2D, "_scan", FUSED):
        return model(x)


FUSED = SS2D._scan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--only", nargs="+", choices=[*TABLES, *EXTRA], default=[*TABLES, *EXTRA])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(settings() + "\n")
    check()
    for title, (dtype, train) in TABLES.items():
        if title in args.only:
            table(title, dtype, train, args)
    if "compiled" in args.only:
        compiled_table(args)
    if "loop" in args.only:
        loop_table(args.size)
    if "sizes" in args.only:
        size_table(args)
    if "roofline" in args.only:
        roofline(args)


if __name__ == "__main__":
    main()
