"""What `ganglion bench` found as rows, a table, files and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import finite, write_csv

if TYPE_CHECKING:
    from ganglion.analysis.published_speed import SpeedRow
    from ganglion.analysis.throughput import Throughput

_Row = dict[str, Any]


def report_rows(
    rows: Sequence[SpeedRow], found: Mapping[tuple[str, int], Throughput], reference: str
) -> list[_Row]:
    """What was measured, what the paper prints, and both as ratios to the reference row of the same size."""
    references = {row.img_size: row for row in rows if row.row == reference}
    report = []
    for row in rows:
        size, base = row.img_size, references.get(row.img_size)
        ours = found.get((row.row, size))
        base_ours = found.get((reference, size))
        entry: _Row = {"row": row.row, "available": row.model is not None}
        entry |= asdict(ours) if ours is not None else {"infer_img_size": size}
        entry["model"] = row.model
        for kind, printed in (("infer", row.infer), ("train", row.train)):
            key, base_printed = f"{kind}_samples_per_sec", None if base is None else getattr(base, kind)
            entry[f"{kind}_ratio"] = _ratio(getattr(ours, key, None), getattr(base_ours, key, None))
            entry[f"paper_{kind}_samples_per_sec"] = printed
            entry[f"paper_{kind}_ratio"] = _ratio(printed, base_printed)
        entry |= {"paper_memory": row.memory, "paper_top1": row.top1}
        report.append(entry)
    keys = dict.fromkeys(key for entry in report for key in entry)
    return [{key: entry.get(key) for key in keys} for entry in report]


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _number(key: str, digits: int) -> Callable[[_Row], str]:
    return lambda row: "" if row.get(key) is None else f"{row[key]:.{digits}f}"


def _spread(row: _Row) -> str:
    low, high = row.get("infer_spread") or (None, None)
    return "" if low is None else f"{low:.1f}-{high:.1f}"


def _said(row: _Row) -> str:
    if not row["available"]:
        return "not available"
    failed = row.get("out_of_memory") or []
    return f"out of memory at batch {', '.join(failed)}" if failed else ""


_COLUMNS: tuple[tuple[str, Callable[[_Row], str]], ...] = (
    ("network", lambda row: row["row"]),
    ("size", _number("infer_img_size", 0)),
    ("batch", _number("infer_batch_size", 0)),
    ("params M", _number("param_count", 2)),
    ("GMACs", _number("infer_gmacs", 3)),
    ("MB", _number("memory", 1)),
    ("paper MB", _number("paper_memory", 0)),
    ("img/s", _number("infer_samples_per_sec", 1)),
    ("spread", _spread),
    ("ratio", _number("infer_ratio", 2)),
    ("paper img/s", _number("paper_infer_samples_per_sec", 0)),
    ("paper ratio", _number("paper_infer_ratio", 2)),
    ("train img/s", _number("train_samples_per_sec", 1)),
    ("train ratio", _number("train_ratio", 2)),
    ("paper train", _number("paper_train_samples_per_sec", 0)),
    ("paper ratio", _number("paper_train_ratio", 2)),
    ("train MB", _number("train_memory", 1)),
    ("top-1 (paper)", _number("paper_top1", 1)),
    ("", _said),
)


def table(report: Sequence[_Row]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the columns in which anything stands; the last one is words."""
    columns = [(title, [cell(row) for row in report]) for title, cell in _COLUMNS]
    shown = [(title, cells) for title, cells in columns if any(cells) or not title]
    return [title for title, _ in shown], [list(cells) for cells in zip(*(c for _, c in shown), strict=True)]


def write(path: Path, header: Mapping[str, Any], report: Sequence[_Row]) -> None:
    """Write the rows, as the name's end says: .csv, .json or .md. Raises OSError."""
    from ganglion.files import replacing

    if path.suffix == ".csv":
        write_csv(path, report)
        return
    if path.suffix == ".json":
        text = json.dumps(finite({**header, "rows": report}), indent=2) + "\n"
    else:
        columns, cells = table(report)
        lines = [columns, ["---"] * len(columns), *cells]
        said = "\n".join(f"* {key}: {value}" for key, value in header.items())
        text = said + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plot(path: Path, header: Mapping[str, Any], report: Sequence[_Row]) -> None:
    """A picture: accuracy over speed where the paper prints accuracies of one size, else speed over the image's size.

    Raises OSError."""
    from ganglion.analysis.pictures import plot_speeds
    from ganglion.files import replacing

    caption = "; ".join(f"{key}: {value}" for key, value in header.items())
    figure = plot_speeds(report, caption)
    with replacing(path) as temporary:
        figure.savefig(temporary)
