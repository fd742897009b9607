"""`ganglion validate --sizes`: a table over the image size."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .common import as_text, write_csv

if TYPE_CHECKING:
    from ganglion.analysis.resolution import SizeResult
    from ganglion.data import ImageSource
    from ganglion.tasks.evaluation import Result
    from ganglion.tasks.loaded_model import LoadedModel

#: Of columns of the table over sizes; the others are as wide as their titles, and at least 8.
_WIDTHS = {"size": 6, "FLOPs G": 9}


def over_sizes(
    args: argparse.Namespace, loaded: LoadedModel, source: ImageSource, measure: Callable[..., Result]
) -> dict[str, Any]:
    from ganglion.analysis.resolution import plot_resolutions, resolutions
    from ganglion.errors import shown
    from ganglion.files import replacing

    rows: list[SizeResult] = []
    records: list[dict[str, Any]] = []
    channels = loaded.data_config["input_size"][0]
    for row in resolutions(loaded.network, loaded.name, args.sizes, measure, in_chans=channels):
        cells = _cells(row)
        if not rows:
            _print_line(args, cells, cells)
        _print_line(args, cells, cells.values())
        rows.append(row)
        records.append(record(row.size, row.result) | {"flops": row.flops, "paper_gflops": row.paper_flops})
        if args.output is not None:
            write_csv(args.output, records)
        if args.plot is not None:
            with replacing(args.plot) as temporary:
                plot_resolutions(rows, f"{loaded.name} on {shown(args.data)}", temporary)
    return {"records": records, "unreadable": rows[0].result.unreadable}


def _cells(row: SizeResult) -> dict[str, str]:
    """A line of the table over sizes, by the titles of its columns."""
    result = row.result
    values = {result.title(name): as_text(name, value) for name, value in result.values.items()}
    return {
        "size": str(row.size),
        **values,
        "images/s": f"{result.images_per_second:.1f}",
        "FLOPs G": f"{row.flops / 1e9:.4f}",
        "paper G": row.paper_flops or "-",
    }


def _print_line(args: argparse.Namespace, titles: Iterable[str], cells: Iterable[str]) -> None:
    if not args.json:
        widths = (_WIDTHS.get(title, max(8, len(title) + 1)) for title in titles)
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)), flush=True)


def record(size: int | str, result: Result) -> dict[str, Any]:
    """A row of --output."""
    names = ("images", "skipped", "not_finite", "images_per_second")
    return {"size": size, **result.values, **{name: getattr(result, name) for name in names}}
