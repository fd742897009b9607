"""One network at many image sizes: VMamba's Table 4 and Figure 11, SparX's Table 15.

The protocol is theirs: weights trained at one size, images resized so that their shorter side is int(size / crop_pct)
(bicubic), then the centre cropped to size x size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from .complexity import complexity
from .published import ROWS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..tasks.evaluation import Result


@dataclass(frozen=True, kw_only=True)
class SizeResult:
    """One image size.

    size: pixels of one side. flops: multiply-accumulates for one image, softmax attention left out.
    paper_flops: the papers' number for this network and size, in 1e9 and as printed, None if they have none.
    result: accuracy, loss and speed.
    """

    size: int
    flops: int
    paper_flops: str | None
    result: Result


def resolutions(
    network: nn.Module,
    name: str,
    sizes: Iterable[int],
    evaluate: Callable[[int], Result],
    *,
    in_chans: int = 3,
) -> Iterator[SizeResult]:
    """Evaluate a network at one size after the other.

    name: the network's in timm's registry, for what the papers say of it.
    evaluate: from the side of the images, in pixels, to accuracy and speed.
    """
    for size in sizes:
        yield SizeResult(
            size=size,
            flops=complexity(network, size, in_chans=in_chans).flops,
            paper_flops=paper_flops(name, size),
            result=evaluate(size),
        )


def paper_flops(name: str, size: int) -> str | None:
    """What the papers print for a network at an image size, in 1e9 multiply-accumulates."""
    wanted = (name, None, size, False)
    found = (row.flops for row in ROWS if (row.model, row.head, row.img_size, row.attention) == wanted)
    return next(found, None)


def plot_resolutions(rows: Sequence[SizeResult], title: str, path: str | Path | None = None) -> Figure:
    """Draw what was measured in percent (else the first value), FLOPs and speed over the image size.

    path: where to save the figure, if given; its suffix (.png, .svg, .pdf) decides the format.

    Returns the matplotlib figure, which belongs to no window. Raises ImportError if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_resolutions needs matplotlib: pip install 'ganglion[viz]'") from error

    sizes = [row.size for row in rows]
    figure = Figure(figsize=(10.5, 3.4), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=10)
    accuracy, flops, speed = figure.subplots(1, 3)
    result = rows[0].result
    percent = [name for name in result.values if result.title(name).endswith(" %")]
    for name, style in zip(percent or list(result.values)[:1], cycle(("o-", "o--"))):
        label = result.title(name).removesuffix(" %")
        accuracy.plot(sizes, [row.result.values[name] for row in rows], style, label=label)
    accuracy.set_ylabel("accuracy / %" if percent else next(iter(result.values)))
    flops.plot(sizes, [row.flops / 1e9 for row in rows], "o-", label="measured")
    printed = [(row.size, float(row.paper_flops)) for row in rows if row.paper_flops is not None]
    if printed:
        flops.plot(*zip(*printed, strict=True), "x", color="black", label="paper")
    flops.set_ylabel("FLOPs / G")
    speed.plot(sizes, [row.result.images_per_second for row in rows], "o-")
    speed.set_ylabel("images/s, reading included")
    for axes in (accuracy, flops, speed):
        axes.set_xlabel("image size / pixels")
        axes.set_xticks(sizes)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(frameon=False, fontsize=8)
    if path is not None:
        figure.savefig(path)
    return figure
