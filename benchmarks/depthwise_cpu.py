"""The native weight gradient of depthwise convolutions on the CPU beside PyTorch's, alone and in training.

    OMP_NUM_THREADS=1 python benchmarks/depthwise_cpu.py [--rounds 15] [--threads 1]

Results are compared with float64 first; a wrong one ends the program. Everything of a row runs in turn in one process;
times are medians of the rounds in milliseconds, ratios medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[1])]

from benchmarks._networks import build, paired_ratio, settings
from ganglion.analysis.timing import seconds_in_turn, training
from ganglion.ops import cpu, depthwise

#: Batch, channels, side, kernel size: SparX on small images, then SparX-T and others at 224 pixels.
SHAPES = (
    (64, 160, 2, 5),
    (64, 320, 2, 3),
    (64, 256, 1, 5),
    (64, 512, 1, 3),
    (64, 96, 4, 5),
    (64, 64, 8, 5),
    (64, 64, 16, 5),
    (4, 192, 56, 5),
    (4, 384, 56, 3),
    (4, 640, 14, 5),
    (4, 96, 56, 7),
    (2, 96, 112, 3),
)
#: Network, batch, image size.
NETWORKS = (("sparx_mamba_nano", 128, 32), ("sparx_mamba_tiny", 2, 224))
#: Largest relative RMS error against float64.
BOUND = 3e-6


def torch_grad_weight(x: Tensor, grad_y: Tensor, kernel_size: int) -> Tensor:
    """`cpu.depthwise.grad_weight` by PyTorch, for maps (B, C, H, W)."""
    channels = x.shape[1]
    weight = x.new_zeros(channels, 1, kernel_size, kernel_size)
    padding, mask = [kernel_size // 2] * 2, [False, True, False]
    return torch.ops.aten.convolution_backward(
        grad_y, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], channels, mask
    )[1]


def grad_weight(x: Tensor, grad_y: Tensor, kernel_size: int) -> Tensor:
    """The kernel, for maps (B, C, H, W) in channels-last memory."""
    return cpu.depthwise.grad_weight(x.permute(0, 2, 3, 1), grad_y.permute(0, 2, 3, 1), kernel_size)


def relative_rms(found: Tensor, reference: Tensor) -> float:
    return float((found - reference).norm() / reference.norm())


def gradients(rounds: int) -> None:
    """Prints the table of the weight gradient alone."""
    print(f"{'B, C, H = W, K':18} {'forward':>8} {'PyTorch':>8} {'ours':>8}  faster  /forward  errors")
    for shape in SHAPES:
        batch, channels, side, size = shape
        torch.manual_seed(0)
        x, grad_y = (
            torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
            for _ in range(2)
        )
        weight = torch.randn(channels, 1, size, size)
        exact = torch_grad_weight(x.double(), grad_y.double(), size)
        errors = [relative_rms(call(x, grad_y, size), exact) for call in (torch_grad_weight, grad_weight)]
        if not errors[1] <= BOUND:
            sys.exit(f"{shape}: relative error {errors[1]:.1e}, bound {BOUND:.0e}; nothing was timed")
        steps: dict[str, Callable[[], object]] = {
            "forward": lambda x=x, w=weight, s=size, c=channels: F.conv2d(x, w, padding=s // 2, groups=c),
            "torch": lambda x=x, g=grad_y, s=size: torch_grad_weight(x, g, s),
            "ours": lambda x=x, g=grad_y, s=size: grad_weight(x, g, s),
        }
        seconds = seconds_in_turn(steps, rounds)  # pyright: ignore
        told = " ".join(f"{statistics.median(s) * 1e3:8.3f}" for s in seconds.values())
        faster = paired_ratio(seconds["torch"], seconds["ours"])[0]
        to_forward = paired_ratio(seconds["ours"], seconds["forward"])[0]
        print(
            f"{', '.join(map(str, shape)):18} {told} {faster:6.1f}x {to_forward:9.2f}  "
            + " ".join(f"{e:.1e}" for e in errors)
        )


def training_steps(rounds: int) -> None:
    """Prints the table of training steps."""
    print(f"\n{'training step':32} {'PyTorch':>9} {'ours':>9}  faster (smallest, largest)")
    for name, batch, size in NETWORKS:
        model = build(name, torch.float32, train=True)
        x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)

        def ours(model=model, x=x) -> None:
            training(model, x)

        def theirs(ours=ours) -> None:
            with mock.patch.object(depthwise, "uses_kernel", return_value=False):
                ours()

        seconds = seconds_in_turn({"torch": theirs, "ours": ours}, rounds)
        told = " ".join(f"{statistics.median(s) * 1e3:9.1f}" for s in seconds.values())
        middle, low, high = paired_ratio(seconds["torch"], seconds["ours"])
        print(f"{f'{name}, {batch} x {size} x {size}':32} {told} {middle:6.2f}x ({low:.2f}, {high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="measurements for each median")
    parser.add_argument("--training-rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if (why := cpu.unavailable()) is not None:
        sys.exit(why)
    isa = os.environ.get(cpu.ISA_ENV, cpu.instruction_sets()[0])
    print(settings(kernel=isa, rounds=args.rounds, training_rounds=args.training_rounds), end="\n\n")
    gradients(args.rounds)
    training_steps(args.training_rounds)


if __name__ == "__main__":
    main()
