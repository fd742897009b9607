"""How a scan walks the pixel grid.

A route is a permutation of the H * W pixels. Every route used by the two papers is a row-major or
column-major walk with each axis run forwards or backwards, so three booleans describe it, and a
kernel needs only an offset and two strides to follow it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import unknown

#: A forward pass records the state of every walk each CHUNK steps; backward starts from these records.
#: The native kernels have the same constant in cpu/src/scan.h.
CHUNK = 64

_TRANSPOSE, _FLIP_ROWS, _FLIP_COLS, _RESTART = 1, 2, 4, 8


@dataclass(frozen=True, kw_only=True)
class Route:
    """One walk over an (H, W) grid.

    transpose: walk column by column instead of row by row.
    flip_rows: the vertical axis runs from the last row to the first.
    flip_cols: the horizontal axis runs from the last column to the first.
    restart: the state is reset to zero at the start of every line (row, or column if transpose).
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_cols: bool = False
    restart: bool = False

    @property
    def code(self) -> int:
        """The route as a bit field, the form in which operators receive it."""
        return (
            _TRANSPOSE * self.transpose
            + _FLIP_ROWS * self.flip_rows
            + _FLIP_COLS * self.flip_cols
            + _RESTART * self.restart
        )

    @classmethod
    def from_code(cls, code: int) -> Route:
        """Inverse of `code`. Raises ValueError for a code outside 0..15."""
        if not 0 <= code < 16:
            raise ValueError(f"route code {code}: expected a bit field in 0..15, see Route.code")
        return cls(
            transpose=bool(code & _TRANSPOSE),
            flip_rows=bool(code & _FLIP_ROWS),
            flip_cols=bool(code & _FLIP_COLS),
            restart=bool(code & _RESTART),
        )

    def strides(self, height: int, width: int) -> tuple[int, int, int]:
        """(offset, outer, inner): step i reads the pixel offset + outer * (i // line) + inner * (i % line)."""
        offset = (height - 1) * width * self.flip_rows + (width - 1) * self.flip_cols
        row = -width if self.flip_rows else width
        col = -1 if self.flip_cols else 1
        return (offset, col, row) if self.transpose else (offset, row, col)

    def line(self, height: int, width: int) -> int:
        """Number of steps in one line of the walk."""
        return height if self.transpose else width

    def order(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """Row-major pixel index read at each step, int64 (H * W,)."""
        offset, outer, inner = self.strides(height, width)
        line = self.line(height, width)
        step = torch.arange(height * width, device=device)
        return offset + outer * (step // max(line, 1)) + inner * (step % max(line, 1))


_ROWS = Route()
_COLS = Route(transpose=True)
_ROWS_BACK = Route(flip_rows=True, flip_cols=True)
_COLS_BACK = Route(transpose=True, flip_rows=True, flip_cols=True)

#: Named scan patterns. VMamba (section 4.2, Table 5 and appendix) and SparX (Table 10).
PATTERNS: dict[str, tuple[Route, ...]] = {
    "cross2d": (_ROWS, _COLS, _ROWS_BACK, _COLS_BACK),
    "unidi": (_ROWS,) * 4,
    "bidi": (_ROWS, _ROWS, _ROWS_BACK, _ROWS_BACK),
    "rot2d": (
        _ROWS,
        Route(transpose=True, flip_cols=True),
        _ROWS_BACK,
        Route(transpose=True, flip_rows=True),
    ),
    "ssm": (_ROWS,),
    "bi_ssm": (_ROWS, _ROWS_BACK),
}


def pattern(name: str) -> tuple[Route, ...]:
    """The routes of a named pattern. Raises ValueError that names the nearest valid one."""
    if name not in PATTERNS:
        raise ValueError(unknown("scan pattern", name, PATTERNS))
    return PATTERNS[name]
