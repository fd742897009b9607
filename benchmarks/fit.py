"""What `ganglion fit` adds to a bare loop of forward, backward and optimizer step over the same batches.

    python benchmarks/fit.py [--model sparx_mamba_nano] [--batch-size 64] [--steps 30] [--rounds 5] [--ema]

Both train the same network from the same weights on the same batches, which lie in memory; their last losses must be
equal. fit also clips, seeds every step, moves the schedule, looks for signals and for NaN losses, and,
with --ema, averages; the bare loop clips and steps. Rounds alternate; the first two steps of each are not timed.
The loader's own cost is benchmarks/loader.py's subject.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import lightning
import numpy as np
import timm
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

import ganglion
from ganglion.data import Batch
from ganglion.tasks.classification.training import Classification, ClassificationData
from ganglion.tasks.fit import FitCLI
from ganglion.training.messages import quiet_libraries
from ganglion.training.optimization import OptimizerConfig, build_optimizer

WARM_UP = 2


class Clock(Callback):
    """Time from the start of a batch to the end of the last one, and the last loss."""

    started = ended = loss = 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == WARM_UP:
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.ended = time.perf_counter()
        self.loss = outputs["loss"].item()


def bare(args: argparse.Namespace, batches: list[Batch]) -> tuple[float, float]:
    """Seconds and last loss of the loop that everybody writes."""
    lightning.seed_everything(0, verbose=False)
    network = timm.create_model(args.model, num_classes=10).train()
    optimizer = build_optimizer(network, OptimizerConfig(), lr=1e-3, fused=True)
    started = 0.0
    for i, batch in enumerate(batches):
        if i == WARM_UP:
            started = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(network(batch.images), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        last = loss.item()
    return time.perf_counter() - started, last


def fit(args: argparse.Namespace, batches: list[Batch], folder: Path) -> tuple[float, float]:
    """Seconds and last loss of `ganglion fit` on the same batches."""
    (folder / "run").mkdir()
    blank = {"images": np.zeros((len(batches), 8, 8, 3), np.uint8), "labels": np.zeros(len(batches), int)}
    np.savez(folder / "blank_train.npz", **blank)  # the batches below take its place
    argv = [
        f"--model.name={args.model}", "--model.num_classes=10", f"--data.root={folder}", "--data.val_split=null",
        "--data.batch_size=1", "--data.workers=0", f"--output={folder / 'run'}", "--optimizer.lr=1e-3",
        "--schedule.name=constant", "--schedule.warmup_epochs=0", f"--ema.decay={0.99 if args.ema else 0}",
        "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.gradient_clip_val=1.0",
    ]  # fmt: skip
    cli = FitCLI(Classification, ClassificationData, argv)
    cli.datamodule.train_dataloader = lambda: DataLoader(batches, batch_size=None)  # pyright: ignore
    clock = Clock()
    cli.trainer.callbacks.append(clock)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return clock.ended - clock.started, clock.loss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="sparx_mamba_nano")
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ema", action="store_true", help="fit averages the weights, too")
    args = parser.parse_args()
    quiet_libraries()

    generator = torch.Generator().manual_seed(0)
    shape = (args.batch_size, 3, args.img_size, args.img_size)
    batches = [
        Batch(torch.randn(shape, generator=generator), torch.randint(10, shape[:1], generator=generator), [])
        for _ in range(args.steps + WARM_UP)
    ]
    ratios, seconds = [], []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours, loss = fit(args, batches, Path(folder))
        theirs, expected = bare(args, batches)
        if abs(loss - expected) > 1e-4 * abs(expected):
            print(f"the last losses differ: {loss} of fit, {expected} of the bare loop")
            return 1
        ratios.append(ours / theirs)
        seconds.append(theirs / args.steps)
    print(f"torch {torch.__version__}, lightning {lightning.__version__}, ganglion {ganglion.__version__}")
    print(
        f"{torch.get_num_threads()} threads, {args.model}, batch {args.batch_size} of {args.img_size} pixels"
    )
    print(f"bare step {1e3 * statistics.median(seconds):.1f} ms; last losses agree")
    print(
        f"fit / bare: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
