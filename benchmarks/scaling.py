"""Time and memory of a training run on many devices, estimated from figures of one device. Nothing is timed here.

    python benchmarks/scaling.py [--model vmamba_tiny_s2l5] [--images-per-second 464] [--data imagenet-1k]

Forward and backward take what one device needs for its part of the batch; the gradients are summed around a ring; the
step waits for that sum (`exposed`) or hides all of it behind the backward pass (`hidden`): the truth lies between. Left
out: validation, checkpoints, stragglers, a loader that is too slow. Memory: weights, gradients, Adam's two averages and
the EMA in float32, shared by the devices with `--fsdp`, and the activations that a training step holds at its peak,
counted on fake tensors.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

sys.path[:0] = [str(Path(__file__).parents[1])]

import ganglion
from ganglion.analysis.complexity import activation_memory

#: Images and epochs. ImageNet-22K's 90 epochs are what is usual there; neither paper trains on it.
DATA = {"imagenet-1k": (1_281_167, 300), "imagenet-22k": (14_197_122, 90)}

#: Devices -> images of a device in a step. Beyond 4,096 images in all, batches are larger than any published recipe's.
SHARES = {8: 128, 16: 128, 32: 128, 64: 64, 128: 64, 256: 32, 512: 32, 1024: 16}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """devices of a node; GB/s of a device to its neighbours inside the node, and to other nodes, each way."""

    per_node: int = 8
    inside: float = 200.0
    outside: float = 25.0

    def ring_seconds(self, size: int, devices: int) -> float:
        """Sum of `size` bytes over the devices: each sends and receives all but its own part twice."""
        speed = self.inside if devices <= self.per_node else self.outside
        return 2 * (devices - 1) / devices * size / (speed * 1e9)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="vmamba_tiny_s2l5")
    parser.add_argument(
        "--images-per-second",
        type=float,
        default=464.0,
        help="of one device in training, measured with --share",
    )
    parser.add_argument("--data", default="imagenet-1k", choices=list(DATA))
    parser.add_argument("--epochs", type=int, help="instead of the usual number")
    parser.add_argument("--inside", type=float, default=Machine.inside, help="GB/s between devices of a node")
    parser.add_argument(
        "--outside", type=float, default=Machine.outside, help="GB/s of a device between nodes"
    )
    parser.add_argument("--fsdp", action="store_true", help="weights and optimizer are sharded")
    args = parser.parse_args()
    images, epochs = DATA[args.data]
    epochs = args.epochs or epochs
    machine = Machine(inside=args.inside, outside=args.outside)

    classes = 1000 if args.data == "imagenet-1k" else 21841
    network = timm.create_model(args.model, num_classes=classes)
    parameters = sum(p.numel() for p in network.parameters())
    # Half precision, as autocast keeps it; growth from one image to the next, since small batches hold buffers besides.
    held = [activation_memory(network, batch_size=b, mode="training", dtype=torch.float16) for b in (8, 16)]
    per_image = (held[1] - held[0]) / 8
    gradients = 4 * parameters
    state = 5 * 4 * parameters

    print(f"ganglion {ganglion.__version__}, torch {torch.__version__}")
    print(f"{args.model}, {parameters / 1e6:.1f} M parameters")
    print(
        f"{args.data}: {images:,} images, {epochs} epochs; one device trains {args.images_per_second:g} images/s"
    )
    print(f"{args.inside:g} GB/s inside a node of {machine.per_node}, {args.outside:g} GB/s outside\n")
    print("| devices | batch | step ms | sum ms | hours, hidden | hours, exposed | efficiency | GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for devices, share in SHARES.items():
        batch = devices * share
        steps = images // batch * epochs
        work = share / args.images_per_second
        # Sharded weights travel twice more, to be gathered for the forward and for the backward pass.
        ring = machine.ring_seconds(gradients, devices) * (1.5 if args.fsdp else 1.0)
        memory = state / (devices if args.fsdp else 1) + share * per_image
        print(
            f"| {devices} | {batch:,} | {1e3 * work:.0f} | {1e3 * ring:.1f} | {steps * work / 3600:.1f} "
            f"| {steps * (work + ring) / 3600:.1f} | {work / (work + ring):.0%} to 100% | {memory / 2**30:.1f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
