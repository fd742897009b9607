"""Writes the tables of docs/models.md and docs/misprints.md between their marks.

python docs/tables.py
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent


def networks() -> str:
    """What `ganglion list --markdown` prints."""
    from ganglion_cli import main

    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(["list", "--markdown"])
    return out.getvalue()


def misprints() -> str:
    """Rows of the papers' tables with a note on a number."""
    from ganglion.analysis.published import DENSE, ROWS

    lines = ["| table | row | printed | why |", "| --- | --- | --- | --- |"]
    for row in (*ROWS, *DENSE):
        for value, unit, note in ((row.params, "M", row.params_note), (row.flops, "G", row.flops_note)):
            if note:
                lines.append(f"| {row.table} | {row.row} | {value} {unit} | {note} |")
    return "\n".join(lines) + "\n"


def put(name: str, mark: str, table: str) -> None:
    path = DOCS / name
    text = path.read_text()
    new = re.sub(
        rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", lambda m: f"{m[1]}\n{table}\n{m[2]}", text, flags=re.S
    )
    path.write_text(new)


if __name__ == "__main__":
    put("models.md", "networks", networks())
    put("misprints.md", "misprints", misprints())
