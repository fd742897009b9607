"""Parameters, FLOPs, memory and connections of a network, of a detector or segmentor over it, or the papers' tables.

Everything is counted from shapes: no weights are made and nothing is computed.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from .common import fail, pixels, positive, print_json, print_table
from .options import say_loading

if TYPE_CHECKING:
    from ganglion.analysis.comparison import Comparison
    from ganglion.models.connections import Plan

DTYPES = ("float32", "bfloat16", "float16")
#: `ganglion.analysis.dense.HEADS`, which takes a second to import.
HEADS = ("mask_rcnn", "upernet", "semantic_fpn")

_EXAMPLES = """\
examples:
  ganglion info vmamba_tiny_s2l5 --img-size 384
  ganglion info vmamba_tiny_s1l8 --head mask_rcnn
  ganglion info sparx_mamba_tiny --head upernet --num-classes 19 --img-size 1024 2048
  ganglion info --paper
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", nargs="?", help="a network of this library or of timm")
    parser.add_argument(
        "--head",
        choices=HEADS,
        help="count a detector or segmentor over the network, at the papers' image size",
    )
    parser.add_argument(
        "--num-classes", type=positive, metavar="N", help="of --head (80 of COCO, 150 of ADE20K)"
    )
    parser.add_argument(
        "--img-size",
        type=pixels,
        nargs="+",
        default=None,
        metavar="N",
        help="one side, or height and width, in pixels (224; with --head 1280 800 or 512 2048)",
    )
    parser.add_argument("--batch-size", type=positive, default=1, help="images in the memory figures (1)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the memory figures")
    parser.add_argument("--attention", action="store_true", help="count softmax attention; the papers do not")
    parser.add_argument("--paper", action="store_true", help="the papers' params and FLOPs beside ours")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    if args.paper == (args.model is not None):
        args.parser.error("expected either a model or --paper")
    if args.img_size is not None and len(args.img_size) > 2:
        args.parser.error(f"--img-size {' '.join(map(str, args.img_size))}: expected one or two numbers")
    if args.head is None and args.num_classes is not None:
        args.parser.error("--num-classes is of a detector or segmentor: expected --head, too")
    if args.head is not None and args.paper:
        args.parser.error("expected --head or --paper, not both")
    say_loading("PyTorch and timm")
    return _paper(args) if args.paper else _model(args)


def _model(args: argparse.Namespace) -> int:
    import timm
    import torch

    from ganglion import list_models
    from ganglion.analysis.complexity import activation_memory, complexity
    from ganglion.analysis.dense import SETTINGS, shapes_of
    from ganglion.errors import unknown
    from ganglion.models.backbone import Stage

    if not timm.is_model(args.model):
        args.parser.error(unknown("model", args.model, list_models()))
    sides = args.img_size or ([224] if args.head is None else SETTINGS[args.head].img_size)
    size = (sides[0], sides[-1])
    name = args.model if args.head is None else f"{args.head} over {args.model}"
    options = {"batch_size": args.batch_size, "dtype": getattr(torch, args.dtype)}
    try:
        if args.head is None:
            model = timm.create_model(args.model, device="meta")
        else:
            model = shapes_of(args.head, args.model, num_classes=args.num_classes)
        cost = complexity(model, size, attention=args.attention)
        memory: dict[str, int | None] = {"inference": activation_memory(model, size, **options)}
        try:
            memory["training"] = activation_memory(model, size, mode="training", **options)
        except ValueError as error:  # batch norm of a map of one pixel, as UperNet's pooling makes
            if "more than 1 value per channel" not in str(error):
                raise
            memory["training"] = None
    # Networks of timm refuse a size in ways of their own, and some cannot be built or run without memory.
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError, NotImplementedError) as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        fail(args, f"cannot count {name} at {size[0]} x {size[1]}: {said}")
    plans = [module.plan for module in model.modules() if isinstance(module, Stage)]
    if args.json:
        report = {
            "model": args.model,
            "head": args.head,
            **asdict(cost),
            "batch_size": args.batch_size,
            "dtype": args.dtype,
        }
        report["activation_memory"] = memory
        report["connections"] = [[list(read) for read in plan.reads] for plan in plans]
        print_json(report)
        return 0

    attention = ""
    if cost.attention_flops:
        included = "included" if args.attention else "left out"
        attention = f", {cost.attention_flops / 1e9:.4f} G of softmax attention {included}"
    print(f"{name} at {size[0]} x {size[1]}")
    print(f"  parameters   {cost.params / 1e6:.3f} M")
    print(f"  FLOPs        {cost.flops / 1e9:.4f} G (1 multiply-accumulate = 1{attention})")
    per = f"batch {args.batch_size}, {args.dtype}"
    inference, training = (
        "none, it needs two images" if n is None else f"{n / 2**20:.1f} MiB" for n in memory.values()
    )
    print(f"  activations  inference {inference}, training step {training} ({per})\n")
    rows = [
        (part.name, f"{part.params / 1e6:.3f}", f"{part.flops / 1e9:.4f}", " x ".join(map(str, part.output)))
        for part in cost.parts
    ]
    print_table(("part", "params M", "FLOPs G", "output"), rows, right={1, 2})
    if plans:
        print("\nconnections (g ganglion, n normal, S the stage's input)")
        for i, plan in enumerate(plans):
            print(f"  stages.{i}  {_describe(plan)}")
    return 0


def _describe(plan: Plan) -> str:
    """For example `0g[S] 1n 2g[1n 0g]`."""

    def name(i: int) -> str:
        return "S" if i < 0 else f"{i}{'g' if plan.is_ganglion(i) else 'n'}"

    layers = []
    for i, read in enumerate(plan.reads):
        layers.append(name(i) + (f"[{' '.join(map(name, read))}]" if read else ""))
    return " ".join(layers)


def _paper(args: argparse.Namespace) -> int:
    from ganglion.analysis.comparison import compare

    found = compare()
    if args.json:
        print_json([asdict(cell) for cell in found])
        return 0
    header = ("table", "row", "network", "size", "", "paper", "measured", "difference", "")
    print_table(header, map(_row, found), right={3, 5, 6, 7})
    agree = sum(cell.agrees for cell in found)
    print(f"\n{agree} of {len(found)} numbers agree to the printed digits.")
    return 0


def _row(cell: Comparison) -> tuple[str, ...]:
    return (
        cell.table,
        cell.row,
        cell.model if cell.head is None else f"{cell.model} {cell.head}",
        str(cell.img_size) if isinstance(cell.img_size, int) else " x ".join(map(str, cell.img_size)),
        cell.quantity,
        f"{cell.paper} {cell.unit}",
        f"{cell.measured:.4f}",
        "" if cell.agrees else f"{cell.difference:+.4f}",
        "" if cell.agrees else cell.note,
    )
