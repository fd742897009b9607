"""How sure a detector's boxes and masks are right: precision over recall, and what objects are taken for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import shown
from .confusion import Confusion, draw_confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..tasks.detection.metrics import CocoMetrics

#: What an object that nothing found is taken for, and what a detection of nothing is of.
BACKGROUND = "(background)"
_NAMES = 60


def detection_confusion(metrics: CocoMetrics, names: Sequence[str], threshold: float = 0.3) -> Confusion:
    """What the detections with a score of at least `threshold` are of, by boxes with an IoU of at least 0.5.

    names: of the classes. After the last comes `BACKGROUND`: objects taken for it were missed, detections of it are of
    nothing. Crowds count nowhere.
    """
    nothing, pairs = len(names), []
    for key, matches in metrics.matches(threshold).items():
        image = metrics.of_image(key)
        objects, found = image["objects"], image["detections"]
        pairs += [
            (objects[o]["label"] if o >= 0 else nothing, found[d]["label"] if d >= 0 else nothing)
            for o, d in matches
        ]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Confusion(table[:, 0], table[:, 1], [*names, BACKGROUND])


def plot_detection(
    curves: Mapping[str, np.ndarray], confusion: Confusion, title: str, path: str | Path | None = None
) -> Figure:
    """Draw precision over recall of boxes and of masks, and the confusion of the classes.

    curves: (10, 101) precision for IoU 0.50 to 0.95 and recall 0 to 1, by what they are of, see `CocoMetrics.curves`.
    path: where to save the figure, if given; its suffix (.png, .svg, .pdf) decides the format.

    Returns the matplotlib figure, which belongs to no window. Raises ImportError if matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_detection needs matplotlib: pip install 'ganglion[viz]'") from error

    size = len(confusion.classes())
    side = 4.6 + 0.14 * min(max(size - 10, 0), _NAMES)
    figure = Figure(figsize=(side + 4.2, side + 3.6), dpi=150, layout="constrained")
    figure.suptitle(shown(title), fontsize=10, parse_math=False)
    parts: Any = figure.subfigures(2, 1, height_ratios=(3.4, side))
    upper, lower = parts
    recall, shades = np.linspace(0, 1, 101), colormaps["viridis"]
    panels: Any = upper.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (name, precision) in zip(panels, curves.items(), strict=True):
        for k in (0, 2, 5, 8):
            iou = 0.5 + 0.05 * k
            mean = precision[k].mean()
            axes.plot(recall, precision[k], color=shades(k / 9), label=f"IoU {iou:.2f}: {100 * mean:.1f}")
        axes.plot(recall, precision.mean(axis=0), "k--", label=f"0.50 to 0.95: {100 * precision.mean():.1f}")
        axes.set(title=name, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(title="AP %", fontsize=7, title_fontsize=7, loc="lower left")
    panels[0].set_ylabel("precision")
    matrix, text = lower.subplots(1, 2, width_ratios=(side, 3.4))
    draw_confusion(matrix, text, confusion, "objects")
    if path is not None:
        figure.savefig(path, bbox_inches="tight")
    return figure
