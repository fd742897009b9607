"""Which bounds a run, the loader or the network: images/s of both, beside each other.

    python benchmarks/loader.py [--workers 0 1 2] [--images 256] [--rounds 3] [--only photos arrays] [--photos DIR]

photos: JPEG files of about 500 x 375 pixels, to 224 pixels with RandAugment and random erasing, as ImageNet recipes
have it, for vmamba_tiny_s1l8. arrays: 32-pixel images in memory, padded and cropped, for sparx_mamba_nano. Training
batches are checked to be the same for every number of loader processes first; what is timed are epochs after the one
that starts the processes, in turn. Networks are timed by themselves: on a CPU they and the loader share the cores, so a
run is slower than either.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1])]

from benchmarks._networks import build, settings
from ganglion.analysis.timing import inference, seconds_in_turn, training
from ganglion.data import (
    Augmentation,
    ImageSource,
    Processes,
    eval_loader,
    eval_transform,
    open_dataset,
    train_transform,
)
from ganglion.data import train_loader as make_train_loader

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "demo_photos"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is loaded, and for which network."""

    network: str
    size: int
    batch: int
    crop_pct: float
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def data_config(self) -> dict:
        return {
            "input_size": (3, self.size, self.size),
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "crop_pct": self.crop_pct,
        }


CASES = {
    "photos": Case(
        network="vmamba_tiny_s1l8",
        size=224,
        batch=16,
        crop_pct=0.875,
        augmentation=Augmentation(auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25),
    ),
    "arrays": Case(
        network="sparx_mamba_nano",
        size=32,
        batch=64,
        crop_pct=1.0,
        augmentation=Augmentation(crop="pad"),
    ),
}


def write_photos(folder: Path, count: int, photos: Path) -> None:
    """JPEG files: parts of the photographs in a folder, or blurred noise if there are none."""
    rng = np.random.default_rng(0)
    originals = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))]
    for i in range(count):
        if originals:
            original = originals[i % len(originals)]
            corner = rng.uniform(0, 0.2, 2) * original.size
            picture = original.resize((500, 375), box=(*corner, *original.size))
        else:
            noise = rng.integers(0, 256, (47, 63, 3), np.uint8)
            picture = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
        path = folder / "train" / f"class{i % 8}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=92)


def write_arrays(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    np.savez(folder / "noise_train.npz", images=images, labels=np.arange(count) % 10)


def train_loader(case: Case, source: ImageSource, workers: int):
    transform = train_transform(case.augmentation, case.data_config)
    return make_train_loader(
        source, transform, batch_size=case.batch, seed=0, processes=Processes(workers=workers)
    )


def check(case: Case, source: ImageSource, workers: list[int]) -> None:
    """Raise unless the training batches are the same for every number of loader processes."""
    expected = None
    for number in workers:
        content = io.BytesIO()
        for batch, _ in zip(train_loader(case, source, number), range(3)):
            assert not batch.unreadable
            content.write(batch.images.numpy().tobytes() + batch.targets.numpy().tobytes())
        if expected not in (None, content.getvalue()):
            raise SystemExit(
                f"{number} loader processes give other batches than {workers[0]}: nothing was timed"
            )
        expected = content.getvalue()


def run(title: str, case: Case, source: ImageSource, args: argparse.Namespace, device: torch.device) -> None:
    check(case, source, args.workers)
    loaders = {}
    for number in args.workers:
        transform = eval_transform(case.data_config)
        loaders["training", number] = train_loader(case, source, number)
        loaders["evaluation", number] = eval_loader(
            source, transform, batch_size=case.batch, processes=Processes(workers=number)
        )
    epochs = {name: lambda loader=loader: [None for _ in loader] for name, loader in loaders.items()}
    seconds = seconds_in_turn(epochs, args.rounds)  # pyright: ignore
    print(
        f"{title}: {len(source)} images to {case.size} pixels, batches of {case.batch}, {args.rounds} rounds"
    )
    print(f"  the first training batches are the same for {args.workers} processes")
    print(f"  {'loader':32}{'images/s':>9}   smallest to largest round")
    speed = {}
    for (kind, number), times in seconds.items():
        images = len(loaders[kind, number]) * case.batch if kind == "training" else len(source)
        speed[kind, number] = images / statistics.median(times)
        print(
            f"  {f'{kind} images, {number} processes':32}{speed[kind, number]:9.1f}"
            f"   {images / max(times):.1f} to {images / min(times):.1f}"
        )
    networks(case, args, device, speed)


def networks(
    case: Case, args: argparse.Namespace, device: torch.device, speed: dict[tuple[str, int], float]
) -> None:
    """The network's images/s, and how many networks of that speed each number of loader processes could feed."""
    x = torch.randn(case.batch, 3, case.size, case.size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)

    def timed(step, model) -> None:
        step(model, x)
        if device.type == "cuda":
            torch.cuda.synchronize()

    steps = {}
    for kind, step in (("training", training), ("evaluation", inference)):
        model = build(case.network, torch.float32, train=kind == "training").to(device)
        steps[kind] = lambda step=step, model=model: timed(step, model)
    print(f"  {f'{case.network} on {device.type}':32}{'images/s':>9}   loader / network, for N processes")
    for kind, times in seconds_in_turn(steps, args.rounds).items():
        rate = case.batch / statistics.median(times)
        ratios = ", ".join(f"{number}: {speed[kind, number] / rate:.2f}" for number in args.workers)
        print(f"  {'training step' if kind == 'training' else 'inference':32}{rate:9.1f}   {ratios}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of the network on a CPU"
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of .jpg to make the files from")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    others = {"cores": os.cpu_count(), "device": device, "load": f"{os.getloadavg()[0]:.1f}"}
    print(settings(**others) + "\n")
    for title in args.only:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if title == "photos":
                write_photos(folder, args.images, args.photos)
            else:
                write_arrays(folder, 20 * args.images)
            run(title, CASES[title], open_dataset(folder, split="train"), args, device)


if __name__ == "__main__":
    main()
