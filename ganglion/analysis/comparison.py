"""The papers' parameters and FLOPs beside those of the networks as they are built here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import timm

from .complexity import Complexity, complexity
from .published import ROWS, PaperRow

Quantity = Literal["params", "flops"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One printed number beside the measured one.

    quantity, unit: "params" in "M" or "flops" in "G" (multiply-accumulates). paper: as printed.
    difference: measured minus printed.
    agrees: whether the measured number, rounded to the printed digits, is the printed one. note: why not.
    """

    table: str
    row: str
    model: str
    img_size: int
    quantity: Quantity
    unit: Literal["M", "G"]
    paper: str
    measured: float
    difference: float
    agrees: bool
    note: str


def compare(rows: Sequence[PaperRow] = ROWS) -> list[Comparison]:
    """Measure the network of every row, each once for every image size."""
    model = cache(lambda name: timm.create_model(name, device="meta"))
    measure = cache(lambda name, size, attention: complexity(model(name), size, attention=attention))
    return [found for row in rows for found in _compare(row, measure(row.model, row.img_size, row.attention))]


def _compare(row: PaperRow, found: Complexity) -> Iterator[Comparison]:
    yield _cell(row, "params", "M", row.params, found.params / 1e6, row.params_note)
    yield _cell(row, "flops", "G", row.flops, found.flops / 1e9, row.flops_note)


def _cell(
    row: PaperRow, quantity: Quantity, unit: Literal["M", "G"], printed: str, measured: float, note: str
) -> Comparison:
    digits = len(printed.partition(".")[2])
    return Comparison(
        table=row.table,
        row=row.row,
        model=row.model,
        img_size=row.img_size,
        quantity=quantity,
        unit=unit,
        paper=printed,
        measured=measured,
        difference=measured - float(printed),
        agrees=f"{measured:.{digits}f}" == printed,
        note=note,
    )
