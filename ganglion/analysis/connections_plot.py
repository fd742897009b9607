"""Draws which earlier features every layer reads, after Figure 2 of SparX (Lou et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.connections import STAGE_INPUT, Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import nn

_NORMAL, _GANGLION, _INPUT = "#c9d6e8", "#e8a87c", "#ffffff"
_INTRA, _INTER, _STAGE = "#3d6fb4", "#c0562b", "#4f8a4c"
_EDGE = "#444444"
_STEP, _BOX = 1.0, 0.52


def plot_connections(model: nn.Module | Plan | Sequence[Plan], path: str | Path | None = None) -> Figure:
    """Draw the cross-layer connections, one row for each stage, the network running from left to right.

    model: a network whose `stages` have a `plan`, one `Plan`, or one for each stage.
    path: where to save the figure, if given; its suffix (.png, .svg, .pdf) decides the format.

    Above the layers run the intra-connections, from normal layers, and those from the stage's input; below
    them the inter-connections, from ganglion to ganglion. Returns the matplotlib figure, which belongs to no
    window.

    Raises TypeError if there is no plan in `model`, ImportError if matplotlib is not installed.
    """
    plans = _plans(model)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_connections needs matplotlib: pip install 'ganglion[viz]'") from error

    bounds = [_bounds(plan) for plan in plans]
    left, right = -_STEP - _BOX, (max(plan.depth for plan in plans) - 1) * _STEP + _BOX
    heights = [top - bottom for bottom, top in bounds]
    scale = 0.62
    margin = 0.75
    width, height = scale * (right - left) + 1.2, scale * sum(heights) + margin
    figure = Figure(figsize=(max(width, 6.4), height), dpi=150)
    edge = height - margin
    for i, (plan, (bottom, top)) in enumerate(zip(plans, bounds, strict=True)):
        share = scale * (top - bottom)
        edge -= share
        axes = figure.add_axes((0.0, edge / height, 1.0, share / height))
        axes.set_xlim(left - 1.2 / scale, left - 1.2 / scale + figure.get_figwidth() / scale)
        axes.set_ylim(bottom, top)
        axes.set_axis_off()
        axes.text(left - 0.15, 0, f"stage {i + 1}", ha="right", va="center", fontsize=9)
        _draw(axes, plan)
    figure.legend(handles=_legend(), loc="upper center", ncols=3, frameon=False, fontsize=8)
    if path is not None:
        figure.savefig(path)
    return figure


def _plans(model: nn.Module | Plan | Sequence[Plan]) -> list[Plan]:
    if isinstance(model, Plan):
        return [model]
    source = getattr(model, "stages", model)
    found = [getattr(stage, "plan", stage) for stage in source] if isinstance(source, Iterable) else []
    if not found or not all(isinstance(plan, Plan) for plan in found):
        raise TypeError(
            f"{type(model).__name__} has no connection plans: expected a network whose stages have a .plan, "
            "a Plan, or a sequence of Plans"
        )
    return found


def _rise(source: int, target: int) -> float:
    """Height of the arc between two layers; flat enough that long arcs stay on the page."""
    return 0.3 + 0.26 * (target - source) ** 0.75


def _edges(plan: Plan) -> list[tuple[int, int, str, int]]:
    """(source, target, colour, 1 above or -1 below the layers) of every connection."""
    edges = []
    for target in plan.ganglions:
        for source in plan.reads[target]:
            if source == STAGE_INPUT:
                edges.append((source, target, _STAGE, 1))
            elif plan.is_ganglion(source):
                edges.append((source, target, _INTER, -1))
            else:
                edges.append((source, target, _INTRA, 1))
    return edges


def _bounds(plan: Plan) -> tuple[float, float]:
    """Lowest and highest point of a stage's part of the figure."""
    rises = {1: 0.0, -1: 0.0}
    for source, target, _, side in _edges(plan):
        rises[side] = max(rises[side], _rise(source, target))
    return -_BOX / 2 - rises[-1] - 0.35, _BOX / 2 + rises[1] + 0.15


def _draw(axes: Axes, plan: Plan) -> None:
    from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, PathPatch
    from matplotlib.path import Path as Curve

    for layer in range(plan.depth):
        x = layer * _STEP
        axes.add_patch(
            FancyArrowPatch(
                (x - _STEP + _BOX / 2, 0), (x - _BOX / 2, 0), arrowstyle="-|>", mutation_scale=7,
                color="#555555", linewidth=0.9, shrinkA=0, shrinkB=0,
            )
        )  # fmt: skip
        axes.add_patch(
            FancyBboxPatch(
                (x - _BOX / 2 + 0.05, -_BOX / 2 + 0.05), _BOX - 0.1, _BOX - 0.1, boxstyle="round,pad=0.05",
                facecolor=_GANGLION if plan.is_ganglion(layer) else _NORMAL, edgecolor=_EDGE, linewidth=0.8,
            )
        )  # fmt: skip
        axes.text(x, 0, str(layer), ha="center", va="center", fontsize=7.5)
    axes.add_patch(Circle((-_STEP, 0), _BOX / 2, facecolor=_INPUT, edgecolor=_EDGE, linewidth=0.8))
    axes.text(-_STEP, 0, "in", ha="center", va="center", fontsize=7)

    for source, target, colour, side in _edges(plan):
        x0, x1 = source * _STEP + 0.06, target * _STEP - 0.06
        foot = side * _BOX / 2
        # A cubic's middle lies at three quarters of its control points' height.
        control = foot + side * _rise(source, target) / 0.75
        curve = Curve([(x0, foot), (x0, control), (x1, control), (x1, foot)], [1, 4, 4, 4])
        axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=colour, linewidth=1.1))
        axes.add_patch(
            FancyArrowPatch(
                (x1, foot + side * 0.14), (x1, foot), arrowstyle="-|>", mutation_scale=6,
                color=colour, linewidth=0, shrinkA=0, shrinkB=0,
            )
        )  # fmt: skip


def _legend() -> list:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=_NORMAL, edgecolor=_EDGE, label="normal layer"),
        Patch(facecolor=_GANGLION, edgecolor=_EDGE, label="ganglion layer"),
        Line2D([], [], color="#555555", label="a layer's own input"),
        Line2D([], [], color=_INTRA, label="intra-connection"),
        Line2D([], [], color=_INTER, label="inter-connection"),
        Line2D([], [], color=_STAGE, label="from the stage's input"),
    ]
