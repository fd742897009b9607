"""Networks of equal size on CIFAR-10: run what has not been run, then print the tables.

    python experiments/cifar10/run.py --data DIR [--tables main] [--seeds 3] [--jobs 2] [--setting small]

Every run is a `ganglion fit` of recipe.yaml in a process of its own, on one core. A finished run is a row of
results.csv and is not run again; an interrupted one resumes from its last checkpoint. DIR holds cifar10_train.npz and
cifar10_test.npz.
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

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
COLUMNS = (
    "setting", "table", "row", "seed", "params", "mflops", "epochs", "train_images",
    "top1", "top5", "val_loss", "train_loss", "train_seconds", "cpu_seconds", "memory_gib", "date", "torch", "machine",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network of a table: its name in timm's registry, its arguments, and how long it trains if not as usual."""

    name: str
    model: str
    args: dict = field(default_factory=dict)
    epochs: int | None = None


#: A network of timm's with the same number of parameters and of layers.
_CONVNEXT = {"depths": [1, 1, 6, 1], "dims": [32, 64, 128, 244]}

TABLES: dict[str, list[Row]] = {
    # Do the connections help? Equal parameters, equal images.
    "main": [
        Row(name="sparx_mamba_nano", model="sparx_mamba_nano"),
        Row(name="sparx_mamba_nano_plain", model="sparx_mamba_nano_plain"),
        Row(name="vmamba_nano", model="vmamba_nano"),
        Row(name="sparx_swin_nano", model="sparx_swin_nano"),
        Row(name="sparx_swin_nano_plain", model="sparx_swin_nano_plain"),
        Row(name="convnext (timm)", model="convnext_atto", args=_CONVNEXT),
    ],
    # As much CPU time as 20 epochs of sparx_mamba_nano take in the main table.
    "equal-time": [
        Row(name="sparx_mamba_nano_plain", model="sparx_mamba_nano_plain", epochs=32),
        Row(name="vmamba_nano", model="vmamba_nano", epochs=58),
    ],
    # SparX's Table 7 in small: in the third stage (5 layers), the stride S and the window M.
    "stride-window": [
        Row(name=f"S={s} M={m}", model="sparx_mamba_nano", args={"stride": [1, 1, s, 1], "window": m})
        for s, m in ((1, 1), (1, 3), (2, 1), (2, 3), (3, 3))
    ],
    # VMamba's Table 5 in small. Patches of 2 pixels, since on maps of 2 x 2 pixels all routes are nearly the same.
    "scan": [
        Row(name=scan, model="vmamba_nano", args={"scan": scan, "patch_size": 2})
        for scan in ("unidi", "bidi", "cascade2d", "cross2d")
    ],
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows of a table change in recipe.yaml (options) and in their networks (args)."""

    options: tuple[str, ...] = ()
    args: dict = field(default_factory=dict)


#: `gpu` is the larger one: all images, larger maps, longer.
SETTINGS = {
    "small": Setting(),
    "gpu": Setting(
        args={"patch_size": 2},
        options=(
            "--data.train_limit=null", "--data.batch_size=256", "--data.workers=8", "--trainer.max_epochs=200",
            "--trainer.accelerator=gpu", "--trainer.precision=bf16-mixed", "--schedule.warmup_epochs=10",
            "--data.augmentation.auto_augment=rand-m9-mstd0.5-inc1", "--model.mixing.cutmix=1.0",
            "--model.drop_path_rate=0.1", "--ema.decay=0.9998",
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    setting: str
    table: str
    row: Row
    seed: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.setting, self.table, self.row.name, str(self.seed)

    @property
    def args(self) -> dict:
        """Arguments of the network."""
        return SETTINGS[self.setting].args | self.row.args


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the npz files")
    parser.add_argument("--tables", nargs="+", default=["main"], choices=list(TABLES))
    parser.add_argument("--setting", default="small", choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--output", type=Path, default=Path("outputs/experiments/cifar10"))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after N minutes")
    parser.add_argument(
        "--print", action="store_true", dest="only_print", help="print the tables, run nothing"
    )
    args = parser.parse_args()
    if not args.only_print:
        if not (args.data / "cifar10_train.npz").is_file():
            parser.error(f"--data {args.data}: expected a folder with cifar10_train.npz and cifar10_test.npz")
        runs = [
            Run(setting=args.setting, table=table, row=row, seed=seed)
            for table in args.tables
            for seed in range(args.seeds)
            for row in TABLES[table]
        ]
        if not run_all(runs, args):
            return 1
    print_tables()
    draw(HERE / "results.svg")
    return 0


def run_all(runs: list[Run], args: argparse.Namespace) -> bool:
    """Do what has no result yet, `--jobs` at a time. Returns whether nothing failed."""
    done = {tuple(row[c] for c in ("setting", "table", "row", "seed")) for row in read_results()}
    to_do = [run for run in runs if run.key not in done]
    print(f"{len(runs)} runs, {len(to_do)} of them to do", flush=True)
    lock, end = threading.Lock(), time.monotonic() + 60 * args.minutes

    def work(run: Run) -> bool:
        if time.monotonic() > end:
            return True
        result = fit(run, args)
        if result is not None:
            with lock:
                add_result(result)
        return result is not None

    with ThreadPoolExecutor(args.jobs) as pool:
        return all(list(pool.map(work, to_do)))


def fit(run: Run, args: argparse.Namespace) -> dict | None:
    """One `ganglion fit`. Returns its row of results.csv, or None, with the end of its output printed, if it failed."""
    name = f"{run.setting}/{run.table}/{run.row.name}/seed{run.seed}"
    folder = args.output / name.replace(" ", "_").replace(",", "")
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "ganglion", "fit", f"--config={HERE / 'recipe.yaml'}", *SETTINGS[run.setting].options,
        f"--output={folder}", f"--data.root={args.data}", f"--seed_everything={run.seed}",
        f"--model.name={run.row.model}",
    ]  # fmt: skip
    if run.row.epochs is not None:
        command += [
            f"--trainer.max_epochs={run.row.epochs}",
            f"--trainer.check_val_every_n_epoch={run.row.epochs}",
        ]
    if run.args:
        command.append(f"--model.model_args={run.args}")
    environment = dict(os.environ)
    if run.setting == "small":
        environment |= {"OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    with open(folder / "output.txt", "a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status := os.waitstatus_to_exitcode(status):
        tail = (folder / "output.txt").read_text()[-2000:]
        print(f"{name}: exit status {status}\n{tail}", flush=True)
        return None
    rows = read_csv(folder / "log.csv")
    result = describe(run, folder) | {
        "epochs": rows[-1]["epoch"],
        "top1": rows[-1]["val/top1"],
        "top5": rows[-1]["val/top5"],
        "val_loss": rows[-1]["val/loss"],
        "train_loss": rows[-1]["train/loss"],
        "train_seconds": round(sum(float(row["train_seconds"]) for row in rows), 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "memory_gib": rows[-1]["memory_gib"],
    }
    print(f"{name}: top-1 {float(result['top1']):.2f} % in {seconds / 60:.1f} min", flush=True)
    return result


def describe(run: Run, folder: Path) -> dict:
    """What the run was of, and where."""
    import timm
    import torch
    import yaml

    from ganglion.analysis.complexity import complexity

    config = yaml.safe_load((folder / "config.yaml").read_text())
    cost = complexity(timm.create_model(run.row.model, num_classes=10, device="meta", **run.args), (32, 32))
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, 1 core"
    machine = cpu if run.setting == "small" else torch.cuda.get_device_name()
    return {
        "setting": run.setting, "table": run.table, "row": run.row.name, "seed": run.seed,
        "params": cost.params, "mflops": round(cost.flops / 1e6, 3),
        "train_images": config["data"]["train_limit"] or 50000,
        "date": date.today().isoformat(), "torch": torch.__version__, "machine": machine,
    }  # fmt: skip


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_results() -> list[dict[str, str]]:
    return read_csv(RESULTS) if RESULTS.exists() else []


def add_result(result: dict) -> None:
    new = not RESULTS.exists()
    with open(RESULTS, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(result)


def print_tables() -> None:
    """Mean and standard deviation over the seeds, as Markdown."""
    results = read_results()
    for setting, table in dict.fromkeys((row["setting"], row["table"]) for row in results):
        rows = [row for row in results if (row["setting"], row["table"]) == (setting, table)]
        print(f"\n{table}, {setting}: {rows[0]['train_images']} images\n")
        print(
            "| network | params M | MFLOPs | epochs | seeds | top-1 % | loss, training | loss, test | CPU min |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for name, of in by_name(table, rows).items():
            top1 = [float(row["top1"]) for row in of]
            spread = f" +- {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
            train, test, seconds = (
                statistics.mean(float(row[column]) for row in of)
                for column in ("train_loss", "val_loss", "cpu_seconds")
            )
            print(
                f"| {name} | {int(of[0]['params']) / 1e6:.3f} | {float(of[0]['mflops']):.2f} | {of[0]['epochs']} "
                f"| {len(of)} | {statistics.mean(top1):.2f}{spread} | {train:.3f} | {test:.3f} | {seconds / 60:.1f} |"
            )


def by_name(table: str, results: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """The results of each row of a table that has any, in the table's order."""
    names = [row.name for row in TABLES[table]]
    found = {name: [result for result in results if result["row"] == name] for name in names}
    return {name: of for name, of in found.items() if of}


def draw(path: Path) -> None:
    """A point for every run, a line for the mean, one panel for each table of the small setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    results = [row for row in read_results() if row["setting"] == "small"]
    tables = list(dict.fromkeys(row["table"] for row in results))
    if not tables:
        return
    figure, axes = plt.subplots(
        1, len(tables), figsize=(5 * len(tables) + 1, 3.2), squeeze=False, layout="constrained"
    )
    for axis, table in zip(axes[0], tables, strict=True):
        rows = by_name(table, [row for row in results if row["table"] == table])
        names = list(rows)[::-1]
        for y, name in enumerate(names):
            top1 = [float(row["top1"]) for row in rows[name]]
            axis.plot(top1, [y] * len(top1), "o", color="tab:blue", alpha=0.6)
            axis.plot([statistics.mean(top1)] * 2, [y - 0.25, y + 0.25], color="tab:orange", linewidth=2)
        axis.set(title=table, xlabel="top-1 (%)", yticks=range(len(names)), yticklabels=names)
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
