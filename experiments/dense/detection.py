"""Mask R-CNN on small networks: 20 images by heart, and from scratch on the hundred of coco_mini.

    python experiments/dense/detection.py --data DIR [--tables twenty scratch] [--seeds 3] [--jobs 2] [--device cuda]

Every run is a `ganglion fit` in a process of its own. A finished run is a row of detection.csv and is not run again; an
interrupted one resumes. DIR is laid out as COCO: annotations/instances_train2017.json, train2017/, and so for val2017.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "detection.csv"
VALUES = ("box_ap", "box_ap50", "box_ar100", "mask_ap", "mask_ap50")
COLUMNS = (
    "table", "row", "seed", "params", "epochs", "images", *VALUES, "train_loss", "train_seconds", "cpu_seconds",
    "memory_gib", "date", "torch", "machine",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network: its name in timm's registry, and its arguments."""

    name: str
    backbone: str
    args: dict = field(default_factory=dict)


#: The networks of experiments/cifar10, of equal size.
ROWS = (
    Row(name="vmamba_nano", backbone="vmamba_nano"),
    Row(name="sparx_mamba_nano", backbone="sparx_mamba_nano"),
    Row(name="sparx_mamba_nano_plain", backbone="sparx_mamba_nano_plain"),
    Row(
        name="convnext (timm)",
        backbone="convnext_atto",
        args={"depths": [1, 1, 6, 1], "dims": [32, 64, 128, 244]},
    ),
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """recipe: of every run. images: that it trains on."""

    recipe: Path
    images: int


TABLES = {
    # Does every part learn? Measured on the images that it was trained on.
    "twenty": Table(recipe=HERE.parents[1] / "recipes" / "detection" / "overfit.yaml", images=20),
    # 103 images to train, 61 others to validate.
    "scratch": Table(recipe=HERE / "coco_mini.yaml", images=103),
}

Run = tuple[str, Row, int]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder laid out as COCO")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--rows", nargs="+", default=[r.name for r in ROWS], choices=[r.name for r in ROWS])
    parser.add_argument("--seeds", type=int, default=3, help="of every row; of `twenty` one is run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--epochs", type=int, help="end after so many: a rehearsal, of which no row is kept")
    parser.add_argument("--output", type=Path, default=Path("outputs/experiments/dense/detection"))
    parser.add_argument(
        "--print", action="store_true", dest="only_print", help="print the tables, run nothing"
    )
    args = parser.parse_args()
    if not args.only_print:
        if not (args.data / "annotations" / "instances_train2017.json").is_file():
            parser.error(f"--data {args.data}: expected a folder with annotations/instances_train2017.json")
        args.data = args.data.resolve()
        if not run_all(runs_of(args), args):
            return 1
    print_tables()
    return 0


def runs_of(args: argparse.Namespace) -> list[Run]:
    return [
        (table, row, seed)
        for table in args.tables
        for seed in range(1 if table == "twenty" else args.seeds)
        for row in ROWS
        if row.name in args.rows
    ]


def run_all(runs: list[Run], args: argparse.Namespace) -> bool:
    """Do what has no result yet, `--jobs` at a time. Returns whether nothing failed."""
    done = {(row["table"], row["row"], row["seed"]) for row in read_csv(RESULTS)}
    to_do = [run for run in runs if (run[0], run[1].name, str(run[2])) not in done]
    print(f"{len(runs)} runs, {len(to_do)} of them to do", flush=True)
    lock = threading.Lock()

    def work(run: Run) -> bool:
        result = fit(run, args)
        if result is not None and args.epochs is None:
            with lock:
                add_result(result)
        return result is not None

    with ThreadPoolExecutor(args.jobs) as pool:
        return all(list(pool.map(work, to_do)))


def fit(run: Run, args: argparse.Namespace) -> dict | None:
    """One `ganglion fit`. Returns its row of the results, or None, with the end of its output printed, if it failed."""
    name, row, seed = run
    table, folder = TABLES[name], args.output / name / row.name.replace(" ", "_") / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "ganglion", "fit", f"--config={table.recipe}", f"--output={folder}",
        f"--data.root={args.data}", f"--seed_everything={seed}", f"--model.backbone={row.backbone}",
    ]  # fmt: skip
    if row.args:
        command.append(f"--model.backbone_args={row.args}")
    if name == "twenty":
        chosen = folder / "twenty.json"
        if not chosen.exists():
            subprocess.run(
                [sys.executable, HERE / "twenty.py", args.data, chosen], check=True, stdout=subprocess.DEVNULL
            )
        command += [f"--data.{part}_annotations={chosen.resolve()}" for part in ("train", "val")]
    if args.device == "cuda":
        command.append("--trainer.accelerator=gpu")
    if args.epochs is not None:
        command += [f"--trainer.max_epochs={args.epochs}", f"--trainer.check_val_every_n_epoch={args.epochs}"]
        command += ["--schedule.warmup_epochs=0"]
    start = time.perf_counter()
    with open(folder / "output.txt", "a") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    label = f"{name}/{row.name}/{seed}"
    if status := os.waitstatus_to_exitcode(status):
        print(f"{label}: exit status {status}\n{(folder / 'output.txt').read_text()[-2000:]}", flush=True)
        return None
    rows = read_csv(folder / "log.csv")
    measured = next(r for r in reversed(rows) if r["val/box_ap"])
    print(f"{label}: box AP {float(measured['val/box_ap']):.2f} in {seconds / 60:.1f} min", flush=True)
    return describe(run, args.device) | {
        "epochs": rows[-1]["epoch"],
        **{value: measured[f"val/{value}"] for value in VALUES},
        "train_loss": rows[-1]["train/loss"],
        "train_seconds": round(sum(float(r["train_seconds"]) for r in rows), 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "memory_gib": rows[-1]["memory_gib"],
    }


def describe(run: Run, device: str) -> dict:
    """What the run was of, and where."""
    import torch

    from ganglion.heads import create_detector

    name, row, seed = run
    with torch.device("meta"):
        detector = create_detector("mask_rcnn", row.backbone, channels=128, backbone_args=row.args)
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, 1 core"
    return {
        "table": name, "row": row.name, "seed": seed, "images": TABLES[name].images,
        "params": sum(p.numel() for p in detector.parameters()),
        "date": date.today().isoformat(), "torch": torch.__version__,
        "machine": cpu if device == "cpu" else torch.cuda.get_device_name(),
    }  # fmt: skip


def read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def add_result(result: dict) -> None:
    new = not RESULTS.exists()
    with open(RESULTS, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(result)


def print_tables() -> None:
    """Mean and standard deviation over the seeds, as Markdown."""
    results = read_csv(RESULTS)
    for table in dict.fromkeys(row["table"] for row in results):
        print(f"\n{table}: {TABLES[table].images} images\n")
        print("| network | params M | epochs | seeds | box AP | AP50 | AR | mask AP | AP50 | CPU min |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for row in ROWS:
            of = [r for r in results if (r["table"], r["row"]) == (table, row.name)]
            if not of:
                continue
            cells = [
                f"{statistics.mean(v):.2f}" + (f" +- {statistics.stdev(v):.2f}" if len(v) > 1 else "")
                for v in ([float(r[value]) for r in of] for value in VALUES)
            ]
            minutes = statistics.mean(float(r["cpu_seconds"]) for r in of) / 60
            print(
                f"| {row.name} | {int(of[0]['params']) / 1e6:.2f} | {of[0]['epochs']} | {len(of)} | "
                f"{' | '.join(cells)} | {minutes:.1f} |"
            )


if __name__ == "__main__":
    sys.exit(main())
