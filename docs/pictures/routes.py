"""Draws docs/pictures/routes.svg: an image, the four routes that walk it, and what one pixel learns from them.

    python docs/pictures/routes.py [FILE]

The routes are `pattern("cross2d")`, and the last panel is the gradient of `scan2d`: nothing is drawn by hand but the
little landscape.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch

import ganglion
from ganglion.ops.routes import Route, pattern

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.collections import LineCollection

HEIGHT, WIDTH = 12, 16
PIXEL = (5, 10)  # row and column of the one that is asked
#: Readable on white and on black.
GREY = "#8b949e"
TITLES = ("rows", "columns", "rows, back", "columns, back")
COLOURS = ("plasma", "viridis", "plasma", "viridis")


def landscape() -> np.ndarray:
    """A sun over two hills and a lake, (HEIGHT, WIDTH, 3) from 0 to 1."""
    row, col = np.mgrid[:HEIGHT, :WIDTH]
    fade = (row / HEIGHT)[..., None]
    image = (1 - fade) * np.array([0.36, 0.56, 0.82]) + fade * np.array([0.98, 0.80, 0.62])
    image[(row - 3) ** 2 + (col - 11.5) ** 2 < 4.5] = (1.0, 0.86, 0.38)
    image[row > 6.5 + 0.12 * (col - 4) ** 2] = (0.33, 0.52, 0.42)
    image[row > 7.5 + 0.10 * (col - 13) ** 2] = (0.23, 0.40, 0.36)
    image[row > 9.5] = (0.30, 0.47, 0.66)
    shade = np.random.default_rng(0).normal(0, 0.02, (HEIGHT, WIDTH, 1))
    return np.clip(image + shade, 0, 1)


def influence(routes: tuple[Route, ...]) -> np.ndarray:
    """How much every pixel matters for one output of the scan: (HEIGHT, WIDTH), the largest but PIXEL's own is 1."""
    x = torch.ones(1, HEIGHT, WIDTH, 1, requires_grad=True)
    k = len(routes)
    proj = torch.ones(1, HEIGHT, WIDTH, k * 3)  # step size, B and C of every route
    y = ganglion.scan2d(
        x,
        proj,
        torch.zeros(k, 1, 1),
        torch.zeros(k, 1),
        torch.full((k, 1, 1), -0.35),
        torch.zeros(k, 1),
        routes=routes,
    )
    (gradient,) = torch.autograd.grad(y[(0, *PIXEL, 0)], x)
    map_HW = gradient[0, :, :, 0].numpy()
    others = np.delete(map_HW.ravel(), PIXEL[0] * WIDTH + PIXEL[1])
    return np.minimum(map_HW / others.max(), 1)


def draw(file: Path) -> None:
    """Write the figure, as SVG or whatever the file's extension says, on a transparent ground."""
    image, routes = landscape(), pattern("cross2d")
    plt.rcParams |= {"svg.hashsalt": "ganglion", "font.size": 9, "text.color": GREY}
    figure, axes = plt.subplots(1, 6, figsize=(13, 1.9), gridspec_kw={"wspace": 0.08})
    axes[0].imshow(image)
    axes[0].set_title("an image", color=GREY)
    for axis, route, title, colour in zip(axes[1:5], routes, TITLES, COLOURS, strict=True):
        axis.imshow(image, alpha=0.4)
        order = route.order(HEIGHT, WIDTH).numpy()
        points = np.stack([order % WIDTH, order // WIDTH], axis=1).reshape(-1, route.line(HEIGHT, WIDTH), 2)
        colours = plt.get_cmap(colour)(np.linspace(0.25, 0.95, len(points)))
        returns = np.stack([points[:-1, -1], points[1:, 0]], axis=1)
        axis.add_collection(LineCollection(returns, colors=colours, linewidths=0.5))
        axis.add_collection(LineCollection(points[:, [0, -1]], colors=colours, linewidths=2.2))
        axis.scatter(*points[0, 0], color=colours[0], s=34, edgecolors="white", zorder=3)
        axis.scatter(*points[-1, -1], color=colours[-1], s=60, marker="X", edgecolors="white", zorder=3)
        axis.set_title(title, color=GREY)
    seen = influence(routes)[..., None] ** 0.55
    axes[5].imshow(np.concatenate([image, 0.12 + 0.88 * seen], axis=2))
    axes[5].scatter(
        PIXEL[1], PIXEL[0], s=60, marker="s", facecolors="none", edgecolors="#e5484d", linewidths=1.6
    )
    axes[5].set_title("what one pixel learns", color=GREY)
    for axis in axes:
        axis.set_axis_off()
    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, transparent=True, bbox_inches="tight", pad_inches=0.05, metadata=metadata, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
