"""Speed and memory of networks beside each other and beside what the papers print, by VMamba's protocol."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench_table import plot, report_rows, table, write
from .common import (
    add_overwrite,
    check_writable,
    fail,
    need_extra,
    pick_device,
    pixels,
    positive,
    print_json,
    print_table,
)
from .options import say_loading

if TYPE_CHECKING:
    import torch

    from ganglion.analysis.published_speed import SpeedRow
    from ganglion.analysis.throughput import Throughput

#: On a CPU: images of a pass, rounds, and the largest side of a table's images.
_CPU_BATCH, _CPU_ROUNDS, _CPU_SIZE = 4, 5, 512

_EXAMPLES = """\
examples:
  ganglion bench vmamba_tiny_s1l8 swin_tiny_patch4_window7_224 convnext_tiny
  ganglion bench --preset sparx-16 --amp --results-file table16.md --plot table16.png
  ganglion bench --preset vmamba-4 --img-size 224 384 --bench both
  ganglion bench --preset sparx-17 --dry-run

presets: vmamba-1, vmamba-4, vmamba-5, vmamba-steps, sparx-5, sparx-6, sparx-15, sparx-16, sparx-17: the papers' tables.
Nobody has the papers' GPUs: compare ratios to the reference row, ours and the paper's.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "model", nargs="*", help="networks of this library or of timm; the first is the reference"
    )
    parser.add_argument("--preset", metavar="NAME", help="the rows of a paper's table, with what it prints")
    parser.add_argument(
        "--img-size", type=pixels, nargs="+", metavar="N", help="sides in pixels (224; all of a preset's)"
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help="128, or the preset's; on a CPU 4")
    parser.add_argument(
        "--bench",
        choices=("inference", "train", "both"),
        help="what is measured (inference; a preset's columns)",
    )
    parser.add_argument("--amp", action="store_true", help="autocast: float16, on a CPU bfloat16")
    parser.add_argument("--num-warm-iter", type=positive, metavar="N", help="passes before (50; on a CPU 1)")
    parser.add_argument("--num-bench-iter", type=positive, metavar="N", help="rounds (30; on a CPU 5)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    parser.add_argument("--dry-run", action="store_true", help="print rows and estimated memory, run nothing")
    parser.add_argument(
        "--results-file", type=Path, metavar="FILE", help="write the rows, as .csv, .json or .md"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of speeds (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    _check(args)
    say_loading("PyTorch and timm")
    from ganglion.analysis.published_speed import PRESETS
    from ganglion.errors import unknown

    if args.preset is not None and args.preset not in PRESETS:
        args.parser.error(unknown("preset", args.preset, PRESETS))
    preset = None if args.preset is None else PRESETS[args.preset]
    device = pick_device(args)
    rows, left_out = _rows(args, device)
    kinds = {"inference": (True, False), "train": (False, True), "both": (True, True)}
    asked = args.bench or ("both" if preset is not None and preset.train else "inference")
    try:
        found = _measure(args, rows, device, *kinds[asked])
    except (ValueError, AssertionError) as error:  # timm's networks of one size refuse others
        fail(args, error)
    header = _header(args, device)
    if preset is not None:
        header |= {"table": preset.table, "paper's GPU": preset.gpu, "reference": preset.reference}
    if left_out:
        header["left out"] = left_out
    report = report_rows(rows, found, rows[0].row if preset is None else preset.reference)
    try:
        if args.results_file is not None:
            write(args.results_file, header, report)
        if args.plot is not None:
            plot(args.plot, header, report)
    except OSError as error:
        fail(args, error)
    if args.json:
        print_json({**header, "rows": report})
        return 0
    for key, value in header.items():
        print(f"{key}: {value}")
    print()
    columns, cells = table(report)
    print_table(columns, cells, right=set(range(1, len(columns) - 1)))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Exit with status 2, before anything is loaded, for what cannot be."""
    if bool(args.model) == (args.preset is not None):
        args.parser.error("expected names of networks, or --preset NAME")
    for option, suffixes in (("results_file", (".csv", ".json", ".md")), ("plot", (".png", ".svg", ".pdf"))):
        path = getattr(args, option)
        if path is not None and path.suffix not in suffixes:
            name = option.replace("_", "-")
            args.parser.error(f"--{name} {path}: expected a name that ends in {', '.join(suffixes)}")
    if args.plot is not None:
        need_extra(args, "--plot", "matplotlib", "viz")
    check_writable(args, "--results-file", "--plot")


def _rows(args: argparse.Namespace, device: torch.device) -> tuple[list[SpeedRow], str]:
    """What is measured, and in words what of a table is not."""
    import dataclasses

    import timm

    from ganglion import list_models
    from ganglion.analysis.published_speed import PRESETS, SpeedRow, rows_at
    from ganglion.errors import unknown

    cpu = device.type == "cpu"
    counted = args.dry_run and args.preset is not None  # nothing runs: the table's own batches
    batch = args.batch_size or (_CPU_BATCH if cpu and not counted else None)
    left_out = ""
    if args.preset is None:
        for name in args.model:
            if not timm.is_model(name):
                args.parser.error(unknown("model", name, list_models()))
        names, sizes = dict.fromkeys(args.model), dict.fromkeys(args.img_size or [224])
        rows = [SpeedRow(row=name, model=name, img_size=size) for size in sizes for name in names]
    else:
        try:
            rows = rows_at(PRESETS[args.preset], args.img_size)
        except ValueError as error:
            args.parser.error(f"--img-size: {error}")
        if cpu and args.img_size is None and not args.dry_run:
            larger = sorted({row.img_size for row in rows if row.img_size > _CPU_SIZE})
            rows = [row for row in rows if row.img_size <= _CPU_SIZE]
            left_out = f"{', '.join(map(str, larger))} pixels, on a CPU (--img-size)" if larger else ""
    return [dataclasses.replace(row, batch_size=batch or row.batch_size) for row in rows], left_out


def _measure(
    args: argparse.Namespace, rows: Sequence[SpeedRow], device: torch.device, infer: bool, train: bool
) -> dict[tuple[str, int], Throughput]:
    """What was found, by row and size. Rows of one size are measured in turn."""
    import torch

    from ganglion.analysis.throughput import estimate, throughput

    cpu = device.type == "cpu"
    warmup = args.num_warm_iter or (1 if cpu else 50)
    rounds = args.num_bench_iter or (_CPU_ROUNDS if cpu else 30)
    found: dict[tuple[str, int], Throughput] = {}
    for size in dict.fromkeys(row.img_size for row in rows):
        there = {row.row: row for row in rows if row.img_size == size and row.model is not None}
        if args.dry_run:
            with torch.device("meta"):
                shapes = {name: _build(row) for name, row in there.items()}
            results = [estimate(n, network, size, there[n].batch_size) for n, network in shapes.items()]
        else:
            torch.backends.cudnn.benchmark = True
            results = throughput(
                {name: _build(row).eval() for name, row in there.items()},
                size,
                {name: row.batch_size for name, row in there.items()},
                warmup=warmup,
                rounds=rounds,
                infer=infer,
                train=train,
                amp=args.amp,
                device=device,
            )
        found |= {(result.model, size): result for result in results}
    return found


def _build(row: SpeedRow) -> Any:
    """The network of a row, of its size where it is of one."""
    import timm
    import torch

    assert row.model is not None
    torch.manual_seed(0)
    try:
        return timm.create_model(row.model, img_size=row.img_size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    return timm.create_model(row.model)


def _header(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """On what, by what and how."""
    import datetime
    import platform

    import timm
    import torch

    from .fields import version
    from .machine import processor

    if device.type == "cuda":
        memory = "allocated at the peak, with one network on the device"
        name = torch.cuda.get_device_name(device)
    else:
        memory = "counted, activations alone; not the papers' measure"
        name = processor() if device.type == "cpu" else str(device)
    if args.dry_run:
        memory = "counted, activations alone; not the papers' measure"
    header: dict[str, Any] = {
        "device": name,
        "versions": f"ganglion {version()}, torch {torch.__version__}, timm {timm.__version__}, "
        f"Python {platform.python_version()}",
        "dtype": ("bfloat16" if device.type == "cpu" else "float16") + " autocast" if args.amp else "float32",
        "threads": torch.get_num_threads(),
        "weights": "untrained, which changes no time",
        "memory": memory,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if device.type == "cpu" and not args.dry_run:
        header["note"] = (
            "a CPU with small batches: what a network costs here says little of large batches on a GPU"
        )
    return header
