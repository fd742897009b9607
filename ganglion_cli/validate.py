"""Top-1, top-5, loss and images/s of a trained network on labelled images, at one size or at many."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    Progress,
    add_model_arguments,
    fail,
    natural,
    pick_device,
    positive,
    share,
)

if TYPE_CHECKING:
    import torch

    from ganglion.analysis.resolution import Row
    from ganglion.data import Batch, Broken, ImageSource
    from ganglion.tasks.evaluation import Result
    from ganglion.tasks.loading import LoadedModel

#: Of the table over sizes: title, width, text.
_COLUMNS: tuple[tuple[str, int, Callable[[Row], str]], ...] = (
    ("size", 6, lambda row: str(row.size)),
    ("top-1 %", 8, lambda row: f"{row.result.top1:.2f}"),
    ("top-5 %", 8, lambda row: f"{row.result.top5:.2f}"),
    ("loss", 8, lambda row: f"{row.result.loss:.4f}"),
    ("images/s", 9, lambda row: f"{row.result.images_per_second:.1f}"),
    ("FLOPs G", 9, lambda row: f"{row.flops / 1e9:.4f}"),
    ("paper G", 8, lambda row: row.paper_flops or "-"),
)


_EXAMPLES = """\
examples:
  ganglion validate --checkpoint runs/one/model --data images
  ganglion validate --model vmamba_tiny_s2l5 --checkpoint vssm_tiny.pth --data imagenet \\
      --sizes 224,384,512,640,768,1024 --output sizes.csv --plot sizes.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    add_model_arguments(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="folder with a folder for each class, or one for each split",
    )
    data.add_argument("--split", default="validation", metavar="NAME", help="which images (validation)")
    data.add_argument(
        "--data-name",
        default="",
        metavar="NAME",
        help="timm's name of another kind of data, e.g. wds/, hfds/NAME",
    )
    data.add_argument(
        "--class-map", metavar="FILE", help="names of the classes in the order of the model's outputs"
    )
    data.add_argument("--limit", type=positive, metavar="N", help="at most N images")
    data.add_argument("--batch-size", type=positive, default=64, metavar="N", help="images at a time (64)")
    data.add_argument("--workers", type=natural, metavar="N", help="processes that read images (up to 4)")
    size = parser.add_argument_group("image size")
    size.add_argument("--img-size", type=positive, metavar="N", help="side in pixels (the model's)")
    size.add_argument(
        "--crop-pct", type=share, metavar="X", help="resize to size / X, then crop the centre (the model's)"
    )
    size.add_argument(
        "--sizes", type=_sizes, metavar="N,N,...", help="a table over sizes, e.g. 224,384,512,640,768,1024"
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--amp", choices=("none", "bf16", "fp16"), default="none", help="mixed precision (none)"
    )
    speed.add_argument(
        "--channels-last", action="store_true", help="keep images and weights in channels-last memory"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--output", type=Path, metavar="FILE.csv", help="also write the numbers here")
    output.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="with --sizes: draw them (.png, .svg, .pdf)"
    )


def _sizes(text: str) -> list[int]:
    return [positive(part.strip()) for part in text.split(",")]


def run(args: argparse.Namespace) -> int:
    _check(args)

    from ganglion.data import DataError

    device = pick_device(args)
    try:
        loaded, source = _load(args)
        places = None if args.class_map else _places(loaded.class_names, source.class_names)
    except (ValueError, OSError) as error:
        fail(args, error)
    about = {
        "model": loaded.name,
        "checkpoint": args.checkpoint,
        "data": args.data,
        "split": args.split,
        "crop_pct": loaded.data_config["crop_pct"],
        "amp": args.amp,
        "device": str(device),
    }
    if not args.json:
        print(loaded.description)
        print(
            f"{len(source)} images of {args.data} ({args.split}), crop_pct {about['crop_pct']:g}\n",
            flush=True,
        )
    measure = _measure(args, loaded, source, places, device)
    try:
        records, broken = (_over_sizes if args.sizes else _at_one_size)(args, loaded, measure)
    except (DataError, OSError) as error:
        fail(args, error)
    if args.json:
        listed = [{"name": b.name, "reason": b.reason} for b in broken]
        print(json.dumps(about | {"results": records, "broken": listed}, indent=2))
    elif broken:
        print(f"\n{len(broken)} images could not be read, and are not counted")
        for b in broken:
            print(f"  {b.name}: {b.reason}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be seen to be wrong before anything is loaded."""
    if args.model is None and args.checkpoint is None:
        args.parser.error("expected --checkpoint, --model or both")
    if args.sizes and args.img_size:
        args.parser.error("expected --img-size or --sizes, not both")
    if args.plot and not args.sizes:
        args.parser.error("--plot draws what --sizes measures: expected --sizes N,N,...")
    if args.plot is not None:
        if args.plot.suffix not in (".png", ".svg", ".pdf"):
            args.parser.error(f"--plot {args.plot}: expected a name that ends in .png, .svg or .pdf")
        if importlib.util.find_spec("matplotlib") is None:
            args.parser.error("--plot needs matplotlib: pip install 'ganglion[viz]'")
    for option, path in (("--output", args.output), ("--plot", args.plot)):
        if path is not None and not os.access(path.parent, os.W_OK):
            args.parser.error(f"{option} {path}: cannot write to the folder {str(path.parent)!r}")


def _load(args: argparse.Namespace) -> tuple[LoadedModel, ImageSource]:
    from ganglion.data import open_dataset
    from ganglion.tasks.loading import load_model

    loaded = load_model(args.model, args.checkpoint)
    if args.crop_pct is not None:
        loaded = replace(loaded, data_config=loaded.data_config | {"crop_pct": args.crop_pct})
    source = open_dataset(
        args.data,
        split=args.split,
        name=args.data_name,
        channels=loaded.data_config["input_size"][0],
        class_map=args.class_map,
        limit=args.limit,
    )
    source.check_classes(loaded.num_classes)
    return loaded, source


def _places(network: list[str] | None, data: list[str] | None) -> list[int] | None:
    """For each class of the data its place in the network's output, by name; None if the places are the same.

    Where no name of the data is the network's, labels are taken as places, and a warning says so.
    """
    if network is None or data is None or data == network[: len(data)]:
        return None
    strangers = sorted(set(data) - set(network))
    if not strangers:
        return [network.index(name) for name in data]
    if len(strangers) < len(data):
        shown = ", ".join(strangers[:8]) + (", ..." if len(strangers) > 8 else "")
        raise ValueError(
            f"the network does not know {len(strangers)} of the {len(data)} classes of the data: {shown}"
        )
    print(
        f"warning: the data name their classes otherwise than the network: class 0 is {data[0]!r} there and "
        f"{network[0]!r} here. They are matched by number.",
        file=sys.stderr,
    )
    return None


def _renumbered(loader: Iterable[Batch], places: list[int] | None) -> Iterator[Batch]:
    """Batches whose targets are places in the network's output."""
    import torch

    table = None if places is None else torch.tensor([*places, -1])  # the last one is also that of -1
    for batch in loader:
        yield batch if table is None else batch._replace(targets=table[batch.targets])


def _measure(
    args: argparse.Namespace,
    loaded: LoadedModel,
    source: ImageSource,
    places: list[int] | None,
    device: torch.device,
) -> Callable[[int | None], Result]:
    """From the side of the images, None for the network's own, to accuracy and speed."""
    import torch

    from ganglion.data import eval_loader, eval_transform
    from ganglion.tasks.evaluation import evaluate

    amp = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[args.amp]
    memory_format = torch.channels_last if args.channels_last else torch.preserve_format
    loaded.network.to(device, memory_format=memory_format)  # pyright: ignore
    workers = min(4, os.cpu_count() or 1) if args.workers is None else args.workers

    def measure(size: int | None) -> Result:
        loader = eval_loader(
            source,
            eval_transform(loaded.data_config, size),
            batch_size=args.batch_size,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        with closing(Progress(len(source), f"size {size}: " if args.sizes else "")) as progress:
            result = evaluate(
                loaded.network,
                _renumbered(loader, places),
                device=device,
                amp=amp,
                channels_last=args.channels_last,
                progress=progress,
            )
        if not result.images:
            first = f": {result.broken[0].name}: {result.broken[0].reason}" if result.broken else ""
            fail(args, f"none of {len(source)} images could be read{first}")
        return result

    return measure


def _at_one_size(
    args: argparse.Namespace, loaded: LoadedModel, measure: Callable[[int | None], Result]
) -> tuple[list[dict[str, Any]], Sequence[Broken]]:
    result = measure(args.img_size)
    size = args.img_size or " x ".join(map(str, loaded.data_config["input_size"][1:]))
    records = [_record(size, result)]
    _write(args, records)
    if not args.json:
        print(f"  size       {size}")
        print(f"  top-1      {result.top1:.2f} %")
        print(f"  top-5      {result.top5:.2f} %")
        print(f"  loss       {result.loss:.4f}")
        print(f"  images     {result.images}" + (f", {result.skipped} skipped" if result.skipped else ""))
        print(f"  images/s   {result.images_per_second:.1f}, reading included")
    return records, result.broken


def _over_sizes(
    args: argparse.Namespace, loaded: LoadedModel, measure: Callable[[int | None], Result]
) -> tuple[list[dict[str, Any]], Sequence[Broken]]:
    from ganglion.analysis.resolution import plot_resolutions, resolutions

    rows: list[Row] = []
    records: list[dict[str, Any]] = []
    _print_line(args, (title for title, _, _ in _COLUMNS))
    channels = loaded.data_config["input_size"][0]
    for row in resolutions(loaded.network, loaded.name, args.sizes, measure, in_chans=channels):
        _print_line(args, (text(row) for _, _, text in _COLUMNS))
        rows.append(row)
        records.append(_record(row.size, row.result) | {"flops": row.flops, "paper_gflops": row.paper_flops})
        _write(args, records)
        if args.plot is not None:
            plot_resolutions(rows, f"{loaded.name} on {args.data} ({args.split})", args.plot)
    return records, rows[0].result.broken


def _record(size: int | str, result: Result) -> dict[str, Any]:
    names = ("top1", "top5", "loss", "images", "skipped", "images_per_second")
    return {"size": size, **{name: getattr(result, name) for name in names}}


def _write(args: argparse.Namespace, records: Sequence[dict[str, Any]]) -> None:
    if args.output is not None:
        with open(args.output, "w", newline="") as file:
            writer = csv.DictWriter(file, records[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)


def _print_line(args: argparse.Namespace, cells: Iterable[str]) -> None:
    if not args.json:
        line = "  ".join(cell.rjust(width) for cell, (_, width, _) in zip(cells, _COLUMNS, strict=True))
        print(line, flush=True)
