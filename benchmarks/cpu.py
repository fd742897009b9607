"""VMamba on a CPU against what a user would pick instead, and against a scan that loops in Python.

    python benchmarks/cpu.py [--threads 2] [--rounds 7] [--only inference-fp32 inference-bf16 training-fp32 loop sizes]

Logits are checked against the golden float64 reference first. All models of a table then run in turn in one process;
the figures are medians of the ratios of the rounds, as the speed of shared machines changes from second to second.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

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
EXTRA = ("loop", "sizes")
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


def loop_scan(self: SS2D, x: Tensor, first: int, last: int) -> Tensor:
    """`SS2D._scan` as the published CPU path does it: four copies of the map, a Python loop over positions."""
    B, H, W, D = x.shape
    orders = [Route.from_code(code).order(H, W) for code in self.routes[first:last]]
    K, R, N = len(orders), self.dt_rank, self.d_state
    xs_BKLD = torch.stack([x.flatten(1, 2)[:, order] for order in orders], dim=1)
    low, b, c = torch.einsum("bkld,kpd->bkpl", xs_BKLD, self.x_proj_weight).split([R, N, N], dim=2)
    delta = torch.einsum("bkrl,kdr->bkdl", low, self.dt_projs_weight)
    ys = selective_scan_reference(
        xs_BKLD.mT.reshape(B, K * D, H * W),
        delta.reshape(B, K * D, H * W),
        -self.A_logs.exp(),
        b,
        c,
        self.Ds,
        self.dt_projs_bias.flatten(),
        True,
    ).view(B, K, D, H * W)
    y = torch.zeros(B, H * W, D)
    for k, order in enumerate(orders):
        y[:, order] += ys[:, k].mT
    return y.view(B, H, W, D)


def table(title: str, dtype: torch.dtype, train: bool, batch: int, size: int, rounds: int) -> None:
    step = training if train else inference
    x = torch.randn(batch, 3, size, size).to(dtype=dtype, memory_format=torch.channels_last)
    models = {name: build(name, dtype, train=train) for name in MODELS}
    steps = {name: lambda model=model: step(model, x) for name, model in models.items()}
    seconds = seconds_in_turn(steps, rounds)
    print(f"{title}: batch {batch}, {size} x {size}, {rounds} rounds")
    print(f"  {'model':32}{'images/s':>9}{'ms':>8}   speed over Swin-T (smallest to largest round)")
    for name, times in seconds.items():
        median = statistics.median(times)
        ratio, low, high = paired_ratio(seconds[REFERENCE], times)
        print(f"  {name:32}{batch / median:9.1f}{1e3 * median:8.0f}   {ratio:.2f} ({low:.2f} to {high:.2f})")
    print()


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


def size_table(rounds: int) -> None:
    """Time per pixel: linear in the pixels means the same at every size."""
    model = build("vmamba_tiny_s1l8", torch.float32, train=False)
    images = {size: torch.randn(1, 3, size, size) for size in SIZES}
    steps = {str(size): lambda x=x: inference(model, x) for size, x in images.items()}
    seconds = seconds_in_turn(steps, rounds)
    print(f"vmamba_tiny_s1l8, batch 1, fp32, inference, {rounds} rounds: time per pixel")
    per_pixel = {size: [t / size**2 for t in seconds[str(size)]] for size in SIZES}
    for size, times in per_pixel.items():
        ratio, low, high = paired_ratio(times, per_pixel[SIZES[0]])
        print(
            f"  {size:6}{1e9 * statistics.median(times):9.0f} ns   {ratio:.2f} x {SIZES[0]} ({low:.2f} to {high:.2f})"
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
    parser.add_argument("--only", nargs="+", choices=[*TABLES, *EXTRA], default=[*TABLES, *EXTRA])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(settings() + "\n")
    check()
    for title, (dtype, train) in TABLES.items():
        if title in args.only:
            table(title, dtype, train, args.batch, args.size, args.rounds)
    if "loop" in args.only:
        loop_table(args.size)
    if "sizes" in args.only:
        size_table(args.rounds)


if __name__ == "__main__":
    main()
