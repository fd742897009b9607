"""Networks by name: parameters, FLOPs, the papers' accuracy, whether weights are published."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .common import print_json, print_table
from .options import say_loading

#: What is said of the licence of published weights.
_LICENCES = {"mit": "MIT", "other": "no licence stated"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="*", help="of names, such as 'vmamba_*' (all of this library)")
    parser.add_argument("--pretrained", action="store_true", help="only those with published weights")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--markdown", action="store_true", help="print a table in Markdown, as in the documentation"
    )


def run(args: argparse.Namespace) -> int:
    say_loading("PyTorch and timm")
    from ganglion import list_models
    from ganglion.errors import unknown

    names = list(dict.fromkeys(name for p in args.pattern or ["*"] for name in list_models(p)))
    for pattern in args.pattern:
        if not list_models(pattern):
            args.parser.error(unknown("model", pattern, list_models()))
    rows = [row for row in map(_row, names) if row["weights"] or not args.pretrained]
    if args.json:
        print_json(rows)
        return 0
    columns = ("network", "params M", "GMACs", "size", "top-1", "printed in", "published weights")
    cells = [_cells(row) for row in rows]
    if args.markdown:
        for line in (columns, ["---"] * len(columns), *cells):
            print(f"| {' | '.join(line)} |")
    else:
        print_table(columns, cells, right={1, 2, 3, 4})
    return 0


def _row(name: str) -> dict[str, Any]:
    import timm
    import torch

    from ganglion.analysis.accuracies import printed_accuracy
    from ganglion.analysis.complexity import complexity

    cfg = timm.get_pretrained_cfg(name)
    size = 224 if cfg is None else cfg.input_size[1]
    with torch.device("meta"):
        cost = complexity(timm.create_model(name), size)
    printed = printed_accuracy(name)
    return {
        "model": name,
        "params": int(cost.params),
        "macs": int(cost.flops),
        "img_size": size,
        "paper_top1": None if printed is None else printed.top1,
        "paper_source": None if printed is None else printed.source,
        "weights": cfg.url if cfg is not None and cfg.url else None,
        "license": cfg.license if cfg is not None and cfg.url else None,
    }


def _cells(row: dict[str, Any]) -> Sequence[str]:
    top1 = row["paper_top1"]
    return (
        row["model"],
        f"{row['params'] / 1e6:.2f}",
        f"{row['macs'] / 1e9:.2f}",
        str(row["img_size"]),
        "" if top1 is None else f"{top1:.1f}",
        row["paper_source"] or "",
        _LICENCES[row["license"]] if row["weights"] else "",
    )
