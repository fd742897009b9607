"""The pictures of the analyses, in one look: perceptually even colours that the colour-blind and a grey print can read,
and below each picture what it shows of which network, weights, images and seed.

Figures belong to no window. Every function raises ImportError where matplotlib is not installed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .cka import mean_off_diagonal
from .erf import contribution_squares
from .scan_statistics import MemoryLength

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Values from 0 up; values of both signs.
SEQUENTIAL, SIGNED = "viridis", "PuOr"
#: Okabe and Ito's palette.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
#: Exponents of the colour scales: VMamba's for receptive fields; for scan maps, of which else only neighbours show.
FIELD_POWER, MAP_POWER = 0.2, 1 / 3
_SMALL = 7


def new_figure(width: float, height: float, caption: str) -> Figure:
    """A figure of width x height inches, and room below for its caption. What is drawn by layers does not overlap."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'ganglion[viz]'") from error
    width = max(width, 4.0)
    lines = textwrap.wrap(caption, round(width * 17.5))
    below = 0.125 * len(lines) + 0.1
    figure = Figure(figsize=(width, height + below), dpi=150, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, below / (height + below), 1, height / (height + below)))
    figure.text(
        0.08 / width,
        0.06 / (height + below),
        "\n".join(lines),
        fontsize=_SMALL,
        va="bottom",
        parse_math=False,
    )
    return figure


def plot_fields(
    fields: Sequence[Sequence[Tensor]], columns: Sequence[str], rows: Sequence[str], caption: str
) -> Figure:
    """Receptive fields (H, W), a row for each stage or state of the weights, a column for each network.

    Shown as (field / max)^0.2, with the squares of 20, 30, 50 and 99 % where they lie within the image.
    """
    height, width = fields[0][0].shape
    cell = 2.1
    figure = new_figure(cell * len(columns) + 0.9, cell * height / width * len(rows) + 0.25, caption)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    shown: Any = None
    for line, (axes_of_row, of_row) in enumerate(zip(grid, fields, strict=True)):
        for column, (axes, field) in enumerate(zip(axes_of_row, of_row, strict=True)):
            values = field.double().cpu().numpy()
            values = (values / max(values.max(), 1e-300)) ** FIELD_POWER
            shown = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest")
            _squares(axes, field)
            _bare(axes)
            if line == 0:
                axes.set_title(columns[column], fontsize=8, parse_math=False)
            if column == 0:
                axes.set_ylabel(rows[line], fontsize=8, parse_math=False)
    bar = figure.colorbar(
        shown, ax=grid, shrink=0.8, pad=0.02, ticks=[v**FIELD_POWER for v in (0, 1e-3, 0.1, 1)]
    )
    bar.ax.set_yticklabels(["0", "0.001", "0.1", "1"], fontsize=_SMALL)
    bar.set_label("contribution / largest", fontsize=_SMALL)
    return figure


def _squares(axes: Axes, field: Tensor) -> None:
    from matplotlib.patches import Rectangle

    row, column = field.shape[0] // 2, field.shape[1] // 2
    labelled = 0.0
    for square in reversed(contribution_squares(field)):
        if square.side is None:
            continue
        corner = (column - square.side / 2, row - square.side / 2)
        axes.add_patch(
            Rectangle(corner, square.side, square.side, fill=False, edgecolor="white", linewidth=0.7)
        )
        # Labels stand on their squares where these are far enough apart.
        if not labelled or labelled - square.side > 0.12 * field.shape[0]:
            at = (corner[0] + square.side, max(corner[1], 0.05 * field.shape[0]))
            text = f"{100 * square.fraction:.0f} %"
            axes.annotate(text, at, color="white", fontsize=5, ha="right", va="bottom")
            labelled = square.side


def plot_similarity(
    matrices: Sequence[Tensor],
    titles: Sequence[str],
    caption: str,
    axes_names: tuple[str, str] = ("layer", "layer"),
) -> Figure:
    """CKA between layers, one heat map for each matrix. Colours end at 0 and 1, the data may not."""
    figure = new_figure(2.5 * len(matrices) + 0.7, 2.75, caption)
    grid = figure.subplots(1, len(matrices), squeeze=False)[0]
    shown: Any = None
    for axes, matrix, title in zip(grid, matrices, titles, strict=True):
        shown = axes.imshow(matrix.cpu().numpy(), cmap=SEQUENTIAL, vmin=0, vmax=1, origin="lower")
        if matrix.shape[0] == matrix.shape[1] and axes_names[0] == axes_names[1]:
            title = f"{title}\nmean off the diagonal {mean_off_diagonal(matrix):.3f}"
        axes.set_title(title, fontsize=8, parse_math=False)
        axes.set_xlabel(axes_names[1], fontsize=8, parse_math=False)
        axes.set_ylabel(axes_names[0], fontsize=8, parse_math=False)
        for axis, count in ((axes.xaxis, matrix.shape[1]), (axes.yaxis, matrix.shape[0])):
            step = -(-count // 8)
            axis.set_ticks(range(0, count, step), [str(i + 1) for i in range(0, count, step)])
        axes.tick_params(labelsize=_SMALL)
    bar = figure.colorbar(shown, ax=grid, shrink=0.8, pad=0.02)
    bar.set_label("CKA", fontsize=8)
    bar.ax.tick_params(labelsize=_SMALL)
    return figure


def plot_maps(
    maps: Sequence[Sequence[Tensor]],
    columns: Sequence[str],
    rows: Sequence[str],
    caption: str,
    *,
    image: np.ndarray | None = None,
    query: tuple[int, int] | None = None,
    opacity: float = 0.75,
) -> Figure:
    """Scan maps, of one pixel (h, w) or full (L, L), in rows and columns, with a scale for each.

    image: (H, W, 3) of 0..1, laid below maps of one pixel, grey. query: the pixel, marked. opacity: of the maps
        over it.
    Colours follow the cube root of the value.
    """
    height, width = maps[0][0].shape
    cell = 1.9
    figure = new_figure(
        (cell + 0.45) * len(columns) + 0.3, (cell * height / width + 0.3) * len(rows), caption
    )
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (axes_of_row, of_row) in enumerate(zip(grid, maps, strict=True)):
        for column, (axes, values) in enumerate(zip(axes_of_row, of_row, strict=True)):
            _map(figure, axes, values.double().cpu().numpy(), image, opacity)
            if query is not None:
                axes.plot(query[1], query[0], "s", ms=4, mfc="none", mec="#D55E00", mew=1.2)
            axes.set_xlim(-0.5, width - 0.5)
            axes.set_ylim(height - 0.5, -0.5)
            _bare(axes)
            if line == 0:
                axes.set_title(columns[column], fontsize=8, parse_math=False)
            if column == 0:
                axes.set_ylabel(rows[line], fontsize=8, parse_math=False)
    return figure


def _map(figure: Figure, axes: Axes, values: np.ndarray, image: np.ndarray | None, opacity: float) -> None:
    from matplotlib.colors import FuncNorm

    largest = float(np.abs(values).max()) or 1.0
    signed = bool((values < 0).any())
    if image is not None:
        edges = (-0.5, values.shape[1] - 0.5, values.shape[0] - 0.5, -0.5)
        axes.imshow(image.mean(2), cmap="gray", vmin=0, vmax=1, extent=edges, interpolation="bilinear")

    def forward(v):
        return np.sign(v) * np.abs(v) ** MAP_POWER

    def back(v):
        return np.sign(v) * np.abs(v) ** (1 / MAP_POWER)

    norm = FuncNorm((forward, back), vmin=-largest if signed else 0.0, vmax=largest)
    shown = axes.imshow(
        values,
        cmap=SIGNED if signed else SEQUENTIAL,
        norm=norm,
        alpha=None if image is None else opacity,
        interpolation="nearest",
    )
    ticks = (
        [-largest, -largest / 8, 0, largest / 8, largest]
        if signed
        else [0, largest / 27, largest / 8, largest]
    )
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.03, ticks=ticks)
    bar.ax.set_yticklabels([f"{tick:.2g}" for tick in ticks], fontsize=5)
    bar.ax.minorticks_off()


def plot_memory(rows: Sequence[MemoryLength], caption: str) -> Figure:
    """Memory lengths of all layers and routes: a bar from 5 to 95 %, a thick one from 25 to 75 %, the median."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    figure = new_figure(max(6.4, 0.55 * len(layers) + 1.6), 3.4, caption)
    axes = figure.subplots()
    most = max(row.index for row in rows) + 1
    for row in rows:
        x = layers.index(row.layer) + (row.index - (most - 1) / 2) * 0.8 / most
        colour = PALETTE[row.index % len(PALETTE)]
        first, quarter, median, three, last = row.steps
        axes.plot([x, x], [first, last], color=colour, linewidth=0.8)
        axes.plot([x, x], [quarter, three], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(x, median, "o", color="white", mec=colour, ms=3)
    for number, layer in enumerate(layers):
        height, width = next(row.size for row in rows if row.layer == layer)
        for steps, style in ((width, ":"), (height * width, "-")):
            axes.plot([number - 0.45, number + 0.45], [steps, steps], style, color="#555555", linewidth=0.9)
    axes.set_yscale("log")
    axes.set_ylabel("steps until 1/e is left", fontsize=8)
    axes.set_xticks(
        range(len(layers)), [_short(name) for name in layers], fontsize=_SMALL, rotation=45, ha="right"
    )
    axes.tick_params(axis="y", labelsize=_SMALL)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(
        handles=_memory_legend(rows, most),
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=_SMALL,
    )
    return figure


def _memory_legend(rows: Sequence[MemoryLength], routes: int) -> list[Any]:
    from matplotlib.lines import Line2D

    names = {row.index: describe(row.route) for row in rows}
    found = [
        Line2D([], [], color=PALETTE[k % len(PALETTE)], linewidth=3, label=f"route {k}: {names[k]}")
        for k in range(routes)
    ]
    row = Line2D([], [], linestyle=":", color="#555555", label="pixels of a row")
    whole = Line2D([], [], linestyle="-", color="#555555", label="of the whole map")
    return [*found, row, whole]


def describe(route: Any) -> str:
    """A route in words: the way along its lines, and from line to line."""
    across = "left" if route.flip_cols else "right"
    down = "up" if route.flip_rows else "down"
    first, then = (down, across) if route.transpose else (across, down)
    return f"{first}, then {then}" + (", line by line" if route.restart else "")


def _short(name: str) -> str:
    """`stages.2.blocks.1.mixer` -> `3.2`: stage and block, counted from 1; other names as they are."""
    parts = name.split(".")
    if len(parts) >= 4 and parts[0] == "stages" and parts[2] == "blocks":
        return f"{int(parts[1]) + 1}.{int(parts[3]) + 1}"
    return name


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def plot_speeds(rows: Sequence[Mapping[str, Any]], caption: str) -> Figure:
    """Accuracy over images per second, where the rows have one size and the paper's accuracies; else images per second
    over the side of the image, a line for each network.

    rows: of `ganglion bench`: row, infer_img_size, infer_samples_per_sec (or train_), infer_spread, paper_top1.
    """
    figure = new_figure(6.0, 3.6, caption)
    axes = figure.subplots()
    key = "infer" if any(r.get("infer_samples_per_sec") for r in rows) else "train"
    known = [r for r in rows if r.get(f"{key}_samples_per_sec")]
    sizes = sorted({r["infer_img_size"] for r in known})
    speed = "images/s" if key == "infer" else "images/s of training"
    if len(sizes) == 1 and all(r.get("paper_top1") for r in known) and known:
        axes.set_ylabel("top-1 % (the paper's)", fontsize=8)
        axes.set_xlabel(f"{speed} at {sizes[0]} pixels", fontsize=8)
        for i, r in enumerate(known):
            x, y = r[f"{key}_samples_per_sec"], r["paper_top1"]
            axes.plot([x], [y], "o", color=PALETTE[i % len(PALETTE)], markersize=5)
            axes.annotate(r["row"], (x, y), xytext=(5, 3), textcoords="offset points", fontsize=_SMALL)
        axes.margins(x=0.2, y=0.12)
    elif len(sizes) > 1:
        axes.set_ylabel(speed, fontsize=8)
        axes.set_xlabel("side of the image, pixels", fontsize=8)
        for i, name in enumerate(dict.fromkeys(r["row"] for r in known)):
            of_one = [r for r in known if r["row"] == name]
            points = [(r["infer_img_size"], r[f"{key}_samples_per_sec"]) for r in of_one]
            dashes = ("-", "--", ":")[i // len(PALETTE) % 3]
            axes.plot(
                *zip(*points, strict=True), dashes, marker="o", markersize=3, color=PALETTE[i % len(PALETTE)]
            )
            axes.annotate(
                name, points[-1], xytext=(5, 0), textcoords="offset points", fontsize=_SMALL, va="center"
            )
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.margins(x=0.2)
    else:
        axes.set_xlabel(f"{speed} at {', '.join(map(str, sizes))} pixels", fontsize=8)
        names = [r["row"] for r in known]
        axes.barh(names, [r[f"{key}_samples_per_sec"] for r in known], color=PALETTE[0])
        axes.invert_yaxis()
    axes.tick_params(labelsize=_SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
