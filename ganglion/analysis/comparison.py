"""The papers' parameters and FLOPs beside those of the networks as they are built here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import timm
from torch import nn

from .complexity import Complexity, complexity
from .dense import HeadName, shapes_of
from .published import ROWS, PaperRow

Quantity = Literal["params", "flops"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One printed number beside the measured one.

    model, head, img_size: the network, the detector or segmentor over it (None for a classifier), and the image's side
        or its height and width.
    quantity, unit: "params" in "M" or "flops" in "G" (multiply-accumulates). paper: as printed.
    difference: measured minus printed.
    agrees: whether the measured number, rounded to the printed digits, is the printed one. note: why not.
    """

    table: str
    row: str
    model: str
    head: HeadName | None
    img_size: int | tuple[int, int]
    quantity: Quantity
    unit: Literal["M", "G"]
    paper: str
    measured: float
    difference: float
    agrees: bool
    note: str


def compare(rows: Sequence[PaperRow] = ROWS) -> list[Comparison]:
    """Measure the network of every row, each once for every image size."""

    @cache
    def model(name: str, head: HeadName | None) -> nn.Module:
        return timm.create_model(name, device="meta") if head is None else shapes_of(head, name)

    @cache
    def measure(name: str, head: HeadName | None, size: int | tuple[int, int]) -> Complexity:
        return complexity(model(name, head), size)

    return [found for row in rows for found in _compare(row, measure(row.model, row.head, row.img_size))]


def _compare(row: PaperRow, found: Complexity) -> Iterator[Comparison]:
    yield _cell(row, "params", "M", row.params, found.params / 1e6, row.params_note)
    flops = found.flops + (found.attention_flops if row.attention else 0)
    yield _cell(row, "flops", "G", row.flops, flops / 1e9, row.flops_note)


def _cell(
    row: PaperRow, quantity: Quantity, unit: Literal["M", "G"], printed: str, measured: float, note: str
) -> Comparison:
    digits = len(printed.partition(".")[2])
    return Comparison(
        table=row.table,
        row=row.row,
        model=row.model,
        head=row.head,
        img_size=row.img_size,
        quantity=quantity,
        unit=unit,
        paper=printed,
        measured=measured,
        difference=measured - float(printed),
        agrees=f"{measured:.{digits}f}" == printed,
        note=note,
    )
