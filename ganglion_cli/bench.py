"""Speed and memory of networks beside each other, measured in turn by the protocol of VMamba's tables."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from .common import (
    add_overwrite,
    check_writable,
    fail,
    pick_device,
    pixels,
    positive,
    print_json,
    print_table,
    write_csv,
)
from .options import say_loading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="+", help="networks of this library or of timm; the first is the reference"
    )
    parser.add_argument("--img-size", type=pixels, default=224, metavar="N", help="side in pixels (224)")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="128; on a CPU 4")
    parser.add_argument("--num-warm-iter", type=positive, metavar="N", help="passes before (50; on a CPU 1)")
    parser.add_argument("--num-bench-iter", type=positive, metavar="N", help="rounds (30; on a CPU 5)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    parser.add_argument("--dry-run", action="store_true", help="print rows and estimated memory, run nothing")
    parser.add_argument("--results-file", type=Path, metavar="FILE.csv", help="write the rows there, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    if args.results_file is not None and args.results_file.suffix != ".csv":
        args.parser.error(f"--results-file {args.results_file}: expected a name that ends in .csv")
    check_writable(args, "--results-file")
    say_loading("PyTorch and timm")
    import timm
    import torch

    from ganglion import list_models
    from ganglion.analysis.throughput import estimate, throughput
    from ganglion.errors import unknown

    for name in args.model:
        if not timm.is_model(name):
            args.parser.error(unknown("model", name, list_models()))
    device = pick_device(args)
    cpu = device.type == "cpu"
    batch = args.batch_size or (4 if cpu else 128)
    try:
        if args.dry_run:
            shapes = {name: timm.create_model(name, device="meta") for name in args.model}
            rows = [estimate(name, network, args.img_size, batch) for name, network in shapes.items()]
        else:
            torch.backends.cudnn.benchmark = True
            networks = {name: timm.create_model(name).eval().to(device) for name in args.model}
            warmup, rounds = (
                args.num_warm_iter or (1 if cpu else 50),
                args.num_bench_iter or (5 if cpu else 30),
            )
            rows = throughput(networks, args.img_size, batch, warmup=warmup, rounds=rounds)
    except (ValueError, AssertionError) as error:  # timm's networks of one size refuse others
        fail(args, error)
    reference = rows[0].infer_samples_per_sec
    report = []
    for row in rows:
        speed = row.infer_samples_per_sec
        ratio = speed / reference if speed is not None and reference is not None else None
        report.append({**asdict(row), "ratio": ratio})
    where = "cpu" if cpu else torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    header = {
        "device": where,
        "torch": torch.__version__,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "memory": "counted, activations alone; not the papers' measure"
        if cpu or args.dry_run
        else "allocated, with the weights of all rows",
    }
    if args.results_file is not None:
        try:
            write_csv(args.results_file, report)
        except OSError as error:
            fail(args, error)
    if args.json:
        print_json({**header, "rows": report})
        return 0
    print(", ".join(f"{key} {value}" for key, value in header.items()))
    print_table(
        ("network", "size", "batch", "params M", "GMACs", "MB", "img/s", "min", "max", "ratio", ""),
        [_cells(row) for row in report],
        right=set(range(1, 10)),
    )
    return 0


def _cells(row: dict) -> tuple[str, ...]:
    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    low, high = row["spread"] or (None, None)
    failed = ", ".join(map(str, row["out_of_memory"]))
    return (
        row["model"],
        str(row["infer_img_size"]),
        str(row["infer_batch_size"] or ""),
        number(row["param_count"], 2),
        number(row["infer_gmacs"], 3),
        number(row["memory"], 1),
        number(row["infer_samples_per_sec"], 1),
        number(low, 1),
        number(high, 1),
        number(row["ratio"], 2),
        f"out of memory at batch {failed}" if failed else "",
    )
