"""Detectors and segmentors on small networks: 20 images by heart, a hundred from scratch, CamVid from scratch.

    python experiments/dense/run.py --coco DIR --camvid DIR [--tables twenty scratch semantic_fpn upernet] [--seeds 3]
        [--jobs 2] [--device cuda]

Every run is a `ganglion fit` in a process of its own. A finished run is a row of detection.csv or segmentation.csv and
is not run again; an interrupted one resumes. DIR of --coco is laid out as COCO (annotations/instances_train2017.json,
train2017/, the same for val2017), that of --camvid has images/train, annotations/train, the same for val, and classes.
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
RECIPES = HERE.parents[1] / "recipes"
#: Folder of the results.
RESULTS = HERE


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
    """recipe: of every run, and `model`: detector or segmentor, and the fields of its configuration. images: that it
    trains on. seeds: at most. results: file of its rows, whose `values` a table shows under `titles`."""

    recipe: Path
    images: int
    model: str
    config: dict
    seeds: int = 100
    results: str = "detection.csv"
    values: tuple[str, ...] = ("box_ap", "box_ap50", "box_ar100", "mask_ap", "mask_ap50")
    titles: tuple[str, ...] = ("box AP", "AP50", "AR", "mask AP", "AP50")

    @property
    def columns(self) -> tuple[str, ...]:
        return (
            "table", "row", "seed", "params", "epochs", "images", *self.values, "train_loss", "train_seconds",
            "cpu_seconds", "memory_gib", "date", "torch", "machine",
        )  # fmt: skip


_CAMVID = {
    "recipe": RECIPES / "segmentation" / "camvid.yaml",
    "images": 367,
    "results": "segmentation.csv",
    "values": ("miou", "macc", "aacc"),
    "titles": ("mIoU", "mAcc", "aAcc"),
}
TABLES = {
    # Does every part learn? Measured on the images that it was trained on.
    "twenty": Table(
        recipe=RECIPES / "detection" / "overfit.yaml",
        images=20,
        model="mask_rcnn",
        config={"channels": 128},
        seeds=1,
    ),
    # 103 images to train, 61 others to validate.
    "scratch": Table(recipe=HERE / "coco_mini.yaml", images=103, model="mask_rcnn", config={"channels": 128}),
    # 367 images to train, 101 others to validate.
    "semantic_fpn": Table(model="semantic_fpn", config={"neck_channels": 64, "channels": 48}, **_CAMVID),
    "upernet": Table(model="upernet", config={"channels": 48, "aux_channels": 32}, **_CAMVID),
}

Run = tuple[str, Row, int]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--coco", type=Path, help="folder laid out as COCO, for detectors")
    parser.add_argument("--camvid", type=Path, help="folder of CamVid, for segmentors")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--rows", nargs="+", default=[r.name for r in ROWS], choices=[r.name for r in ROWS])
    parser.add_argument("--seeds", type=int, default=3, help="of every row; of `twenty` one is run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--epochs", type=int, help="end after so many: a rehearsal, of which no row is kept")
    parser.add_argument("--output", type=Path, default=Path("outputs/experiments/dense"))
    parser.add_argument(
        "--print", action="store_true", dest="only_print", help="print the tables, run nothing"
    )
    args = parser.parse_args()
    if not args.only_print:
        for option, there in (("coco", "annotations/instances_train2017.json"), ("camvid", "images/train")):
            needed, folder = any(data_of(table) == option for table in args.tables), getattr(args, option)
            if needed and not (folder is not None and (folder / there).exists()):
                parser.error(f"--{option} {folder}: expected a folder with {there}")
        if not run_all(runs_of(args), args):
            return 1
    print_tables()
    return 0


def data_of(table: str) -> str:
    """The option that names the data."""
    return "coco" if TABLES[table].model == "mask_rcnn" else "camvid"


def runs_of(args: argparse.Namespace) -> list[Run]:
    return [
        (table, row, seed)
        for table in args.tables
        for seed in range(min(TABLES[table].seeds, args.seeds))
        for row in ROWS
        if row.name in args.rows
    ]


def run_all(runs: list[Run], args: argparse.Namespace) -> bool:
    """Do what has no result yet, `--jobs` at a time. Returns whether nothing failed."""
    done = {(row["table"], row["row"], row["seed"]) for row in all_results()}
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
    table, data = TABLES[name], getattr(args, data_of(name)).resolve()
    folder = args.output / name / row.name.replace(" ", "_") / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "ganglion", "fit", f"--config={table.recipe}", f"--output={folder}",
        f"--data.root={data}", f"--seed_everything={seed}", f"--model.backbone={row.backbone}",
    ]  # fmt: skip
    if data_of(name) == "camvid":
        command += [f"--model.name={table.model}", f"--model.config={table.config}"]
    if row.args:
        command.append(f"--model.backbone_args={row.args}")
    if name == "twenty":
        chosen = folder / "twenty.json"
        if not chosen.exists():
            subprocess.run(
                [sys.executable, HERE / "twenty.py", data, chosen], check=True, stdout=subprocess.DEVNULL
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
    first = table.values[0]
    measured = next(r for r in reversed(rows) if r[f"val/{first}"])
    print(f"{label}: {first} {float(measured[f'val/{first}']):.2f} in {seconds / 60:.1f} min", flush=True)
    return describe(run, args.device) | {
        "epochs": rows[-1]["epoch"],
        **{value: measured[f"val/{value}"] for value in table.values},
        "train_loss": rows[-1]["train/loss"],
        "train_seconds": round(sum(float(r["train_seconds"]) for r in rows), 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "memory_gib": rows[-1]["memory_gib"],
    }


def describe(run: Run, device: str) -> dict:
    """What the run was of, and where."""
    import torch

    from ganglion.heads import create_detector, create_segmentor

    name, row, seed = run
    table, camvid = TABLES[name], data_of(name) == "camvid"
    create, classes = (create_segmentor, 11) if camvid else (create_detector, 80)
    with torch.device("meta"):
        network = create(
            table.model, row.backbone, num_classes=classes, backbone_args=row.args, **table.config
        )
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, 1 core"
    return {
        "table": name, "row": row.name, "seed": seed, "images": TABLES[name].images,
        "params": sum(p.numel() for p in network.parameters()),
        "date": date.today().isoformat(), "torch": torch.__version__,
        "machine": cpu if device == "cpu" else torch.cuda.get_device_name(),
    }  # fmt: skip


def read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def all_results() -> list[dict[str, str]]:
    files = dict.fromkeys(table.results for table in TABLES.values())
    return [row for file in files for row in read_csv(RESULTS / file)]


def add_result(result: dict) -> None:
    table = TABLES[result["table"]]
    file_name = RESULTS / table.results
    new = not file_name.exists()
    with open(file_name, "a", newline="") as file:
        writer = csv.DictWriter(file, table.columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(result)


def print_tables() -> None:
    """Mean and standard deviation over the seeds, as Markdown."""
    results = all_results()
    for table in dict.fromkeys(row["table"] for row in results):
        print(f"\n{table}: {TABLES[table].images} images\n")
        titles = ("network", "params M", "epochs", "seeds", *TABLES[table].titles, "CPU min")
        print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
        for row in ROWS:
            of = [r for r in results if (r["table"], r["row"]) == (table, row.name)]
            if not of:
                continue
            cells = [
                f"{statistics.mean(v):.2f}" + (f" +- {statistics.stdev(v):.2f}" if len(v) > 1 else "")
                for v in ([float(r[value]) for r in of] for value in TABLES[table].values)
            ]
            minutes = statistics.mean(float(r["cpu_seconds"]) for r in of) / 60
            print(
                f"| {row.name} | {int(of[0]['params']) / 1e6:.2f} | {of[0]['epochs']} | {len(of)} | "
                f"{' | '.join(cells)} | {minutes:.1f} |"
            )


if __name__ == "__main__":
    sys.exit(main())
