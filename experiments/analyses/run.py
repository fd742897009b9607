"""Do the papers' analyses come out the same on small trained networks? Train, measure, then print the tables.

    python experiments/analyses/run.py --data DIR [--seeds 3] [--jobs 2] [--device cuda] [--minutes N]

Every run is a `ganglion fit` of ../cifar10/recipe.yaml in a process of its own, with patches of 2 pixels, so that its
first maps have 16 x 16, then this program with --measure, in another. A finished run is a row of results.csv and is not
run again; an interrupted one resumes from its last checkpoint. DIR holds cifar10_train.npz and cifar10_test.npz.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RECIPE = HERE.parent / "cifar10" / "recipe.yaml"
#: Test images that the receptive fields and the similarities are of, and how many of them to a batch of the latter.
ERF_IMAGES, CKA_IMAGES, CKA_BATCH = 100, 512, 32
FRACTIONS = (0.2, 0.3, 0.5)


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    model: str
    args: dict = field(default_factory=dict)


#: The networks of SparX's Figure 5 in small, and the plain form of SparX's own blocks.
ROWS = (
    Row(name="VMamba", model="vmamba_nano"),
    Row(name="plain", model="sparx_mamba_nano_plain"),
    Row(name="DGC", model="sparx_mamba_nano", args={"connections": "dgc"}),
    Row(name="DSN", model="sparx_mamba_nano", args={"connections": "dsn"}),
    Row(name="SparX", model="sparx_mamba_nano"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the npz files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--limit", type=int, default=10000, help="training images")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/experiments/analyses"), help="folder of the runs"
    )
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results.csv and fields.npz")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after N minutes")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print and draw, run nothing")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        measure(args, args.measure)
        return 0
    if not args.only_print:
        if args.data is None or not (args.data / "cifar10_train.npz").is_file():
            parser.error(f"--data {args.data}: expected a folder with cifar10_train.npz and cifar10_test.npz")
        args.results.mkdir(parents=True, exist_ok=True)
        done = run_all(args)
        if not done:
            return 1
    print_tables(args.results)
    try:
        draw(args.results)
    except ImportError as error:  # a machine that only computes; --print draws elsewhere
        print(error)
    return 0


def run_all(args: argparse.Namespace) -> bool:
    """Seed by seed, so that wherever time ends all networks have equally many. Returns whether nothing failed."""
    done = {(row["network"], row["seed"]) for row in read_results(args.results)}
    to_do = [(row, seed) for seed in range(args.seeds) for row in ROWS if (row.name, str(seed)) not in done]
    print(f"{len(ROWS) * args.seeds} runs, {len(to_do)} of them to do", flush=True)
    lock, end = threading.Lock(), time.monotonic() + 60 * args.minutes

    def work(job: tuple[Row, int]) -> bool:
        if time.monotonic() > end:
            return True
        folder = args.output / job[0].name / f"seed{job[1]}"
        found = train(*job, folder, args) and measured(*job, folder, args)
        if not found:
            return False
        with lock:
            keep(args.results, found, folder / "fields.npz")
        return True

    with ThreadPoolExecutor(args.jobs) as pool:
        return all(list(pool.map(work, to_do)))


def train(row: Row, seed: int, folder: Path, args: argparse.Namespace) -> bool:
    """One `ganglion fit`. Prints the end of its output if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        "fit", f"--config={RECIPE}", f"--output={folder}", f"--data.root={args.data}", f"--seed_everything={seed}",
        f"--data.train_limit={args.limit}", f"--trainer.max_epochs={args.epochs}",
        f"--trainer.check_val_every_n_epoch={args.epochs}", f"--model.name={row.model}",
        f"--model.model_args={json.dumps(row.args | {'patch_size': 2})}",
    ]  # fmt: skip
    if args.device == "cuda":
        command.append("--trainer.accelerator=gpu")
    return run([sys.executable, "-m", "ganglion", *command], folder) == 0


def measured(row: Row, seed: int, folder: Path, args: argparse.Namespace) -> dict[str, Any] | None:
    """The results of one run, computed in a process of its own."""
    options = ["--measure", str(folder), "--data", str(args.data), "--device", args.device]
    if run([sys.executable, __file__, *options], folder):
        return None
    numbers = json.loads((folder / "measured.json").read_text())
    with open(folder / "log.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    print(f"{row.name}, seed {seed}: top-1 {float(last['val/top1']):.2f} %", flush=True)
    start = {"network": row.name, "seed": seed, "epochs": args.epochs, "train_images": args.limit}
    return start | {"device": args.device, "top1": last["val/top1"], **numbers}


def run(command: list[str], folder: Path) -> int:
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    with open(folder / "output.txt", "a") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
    if status:
        print(f"{folder}: exit status {status}\n{(folder / 'output.txt').read_text()[-2000:]}", flush=True)
    return status


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Receptive fields of every stage, similarities and memory of a trained network and of the same one untrained, into
    FOLDER/measured.json and fields.npz."""
    import timm
    import torch

    import ganglion
    from ganglion.analysis import (
        contribution_squares,
        effective_receptive_field,
        layer_similarity,
        mean_off_diagonal,
        scan_statistics,
    )

    device = torch.device(args.device)
    loaded = ganglion.load_model(folder / "model")
    torch.manual_seed(0)
    fresh = timm.create_model(f"local-dir:{folder / 'model'}", pretrained=False)
    images = test_images(args.data, loaded.data_config).to(device)
    numbers: dict[str, float | int | None] = {"params": sum(p.numel() for p in loaded.network.parameters())}
    arrays: dict[str, np.ndarray] = {}
    for state, network in (("untrained", fresh), ("trained", loaded.network)):
        network.to(device)
        for stage in range(4):
            field_ = effective_receptive_field(network, images[:ERF_IMAGES], stage).cpu()
            arrays[f"{state}.stage{stage + 1}"] = field_.numpy().astype(np.float32)
            for square in contribution_squares(field_, FRACTIONS):
                numbers[f"{state}_erf{stage + 1}_{100 * square.fraction:.0f}"] = (
                    square.side or square.largest + 2
                )
        for features in ("mixer", "scan", "block"):
            batches = images[:CKA_IMAGES].split(CKA_BATCH)
            similarity = layer_similarity(network, batches, features).cpu()
            arrays[f"{state}.cka.{features}"] = similarity.numpy().astype(np.float32)
            numbers[f"{state}_cka_{features}"] = round(mean_off_diagonal(similarity), 5)
        rows = scan_statistics(network, images[:8])
        numbers[f"{state}_memory"] = round(statistics.median(row.median for row in rows), 2)
    np.savez_compressed(folder / "fields.npz", **arrays)
    (folder / "measured.json").write_text(json.dumps(numbers))


def test_images(data: Path, config: dict[str, Any]):
    """The first test images as the network sees them, (N, 3, 32, 32)."""
    import torch

    from ganglion.data.decode import read_image

    with np.load(data / "cifar10_test.npz") as file:
        if "images" in file:
            pixels = file["images"][:CKA_IMAGES]
        else:
            import io

            content, at = file["jpeg"].tobytes(), file["offsets"]
            pixels = np.stack(
                [np.asarray(read_image(io.BytesIO(content[at[i] : at[i + 1]]), 3)) for i in range(CKA_IMAGES)]
            )
    values = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(config[name], dtype=torch.float32)[:, None, None] for name in ("mean", "std"))
    return (values - mean) / std


def keep(folder: Path, result: dict[str, Any], arrays: Path) -> None:
    """Append to results.csv, and the arrays to fields.npz."""
    path, store = folder / "results.csv", folder / "fields.npz"
    new = not path.exists()
    before: dict[str, np.ndarray] = {}
    if store.exists():
        with np.load(store) as file:
            before = dict(file)
    with np.load(arrays) as file:
        added = {f"{result['network']}.seed{result['seed']}.{key}": file[key] for key in file}
    np.savez_compressed(store, **(before | added))
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, result, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(result)


def read_results(folder: Path) -> list[dict[str, str]]:
    if not (folder / "results.csv").exists():
        return []
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def of(results: list[dict[str, str]], name: str) -> list[dict[str, str]]:
    return [row for row in results if row["network"] == name]


def text(rows: list[dict[str, str]], column: str, digits: int = 3) -> str:
    """Mean and standard deviation over the seeds."""
    values = [float(row[column]) for row in rows]
    spread = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def print_tables(folder: Path) -> None:
    """As Markdown."""
    results = read_results(folder)
    named = [(row.name, of(results, row.name)) for row in ROWS if of(results, row.name)]
    print(
        "\n| network | params M | seeds | top-1 % | CKA mixer, untrained | trained | CKA scan, untrained | trained |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, rows in named:
        cka = " | ".join(
            text(rows, f"{s}_cka_{f}") for f in ("mixer", "scan") for s in ("untrained", "trained")
        )
        print(
            f"| {name} | {int(rows[0]['params']) / 1e6:.3f} | {len(rows)} | {text(rows, 'top1', 2)} | {cka} |"
        )
    stages = " | ".join(f"stage {n}, untrained | trained" for n in range(1, 5))
    print(f"\n| side of the 50 % square | {stages} |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, rows in named:
        sides = [text(rows, f"{s}_erf{n}_50", 1) for n in range(1, 5) for s in ("untrained", "trained")]
        print(f"| {name} | {' | '.join(sides)} |")


def draw(folder: Path) -> None:
    """Means over the seeds: fields of the last stage, and similarities."""
    import torch

    from ganglion.analysis.pictures import plot_fields, plot_similarity

    results = read_results(folder)
    names = [row.name for row in ROWS if of(results, row.name)]
    if not names:
        return
    with np.load(folder / "fields.npz") as file:
        arrays = dict(file)

    def mean(name: str, key: str):
        found = [arrays[f"{name}.seed{row['seed']}.{key}"] for row in of(results, name)]
        return torch.from_numpy(np.mean(found, axis=0))

    seeds = max(int(row["seed"]) for row in results) + 1
    made = (
        f"Networks of experiments/analyses, patches of 2 pixels, {results[0]['epochs']} epochs on "
        f"{results[0]['train_images']} images of CIFAR-10, mean of {seeds} seeds"
    )
    states = ("untrained", "trained")
    stages = ("stage1", "stage4")
    fields = [[mean(name, f"{state}.{stage}") for name in names] for stage in stages for state in states]
    rows = [f"{state}, {stage[:5]} {stage[5]}" for stage in stages for state in states]
    caption = f"Effective receptive fields of the centre, {ERF_IMAGES} test images. {made}."
    plot_fields(fields, names, rows, caption).savefig(folder / "erf.svg", metadata={"Date": None})
    for state in states:
        matrices = [mean(name, f"{state}.cka.mixer") for name in names]
        caption = f"CKA between the outputs of the mixers, {CKA_IMAGES} test images, {state}. {made}."
        figure = plot_similarity(matrices, names, caption)
        figure.savefig(folder / f"cka_{state}.svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
