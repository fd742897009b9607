"""What `ganglion draw` draws: from its arguments to a picture, a table, and files of both."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from .common import fail, print_table
from .draw_files import (
    Counter,
    Drawn,
    as_input,
    find_images,
    fit_size,
    in_batches,
    open_network,
    read_images,
    write,
)

if TYPE_CHECKING:
    from torch import Tensor

#: The networks of SparX's Figure 5.
FIGURE_5 = ("vmamba_tiny_s2l5", "sparx_mamba_tiny_dgc", "sparx_mamba_tiny_dsn", "sparx_mamba_tiny")


def _dtype(args: argparse.Namespace) -> Any:
    import torch

    return torch.float64 if args.float64 else torch.float32


def _caption(
    what: str, drawn: list[Drawn], args: argparse.Namespace, count: int, size: tuple[int, int]
) -> str:
    from ganglion.errors import shown

    networks = "; ".join(dict.fromkeys(f"{d.label}, {d.weights}" for d in drawn))
    images = ", ".join(map(shown, args.images))
    many = f"{count} image{'s' if count > 1 else ''} of {images}"
    return f"{what}. Networks and weights: {networks}. {many}, resized to {size[0]} x {size[1]}; seed {args.seed}."


def erf(args: argparse.Namespace) -> None:
    import torch

    from ganglion.analysis import contribution_squares, effective_receptive_field
    from ganglion.analysis.pictures import plot_fields

    if args.both and args.untrained:
        args.parser.error("expected either --both or --untrained")
    files = find_images(args)
    states = [True, False] if args.both else [args.untrained]
    drawn = {
        (source, state): open_network(args, source, state) for source in args.networks for state in states
    }
    position = None if args.position is None else (args.position[0], args.position[1])
    counter = Counter(len(files) * len(drawn) * len(args.stage))
    fields: dict[tuple[str, bool, int], Tensor] = {}
    size = fit_size(args, next(iter(drawn.values())))
    for (source, state), one in drawn.items():
        if fit_size(args, one) != size:
            fail(args, f"{one.label} takes other images than {args.networks[0]}: expected --size")
        for stage in args.stage:
            images = (as_input(one, image, _dtype(args)) for image in read_images(args, files, size))
            field = effective_receptive_field(one.network, counter.over(images, one.label), stage, position)
            fields[source, state, stage] = field.cpu()
    counter.close()
    rows = []
    for (source, state, stage), field in fields.items():
        for square in contribution_squares(torch.log10(field + 1) if args.scale == "log10" else field):
            rows.append(
                {
                    "network": drawn[source, state].label,
                    "weights": drawn[source, state].weights,
                    "stage": stage,
                }
                | {
                    "fraction": square.fraction,
                    "side": square.side,
                    "area": square.area,
                    "largest": square.largest,
                }
            )
    lines = [(state, stage) for state in states for stage in args.stage]
    where = "the centre" if position is None else f"({position[0]}, {position[1]})"
    what = (
        f"Effective receptive fields of {where} of the map; boxes hold 20, 30, 50, 99 % of the contribution "
        "(of the raw map)"
    )
    caption = _caption(what, list(drawn.values()), args, len(files), size)
    figure = plot_fields(
        [[fields[source, state, stage] for source in args.networks] for state, stage in lines],
        [drawn[source, states[-1]].label for source in args.networks],
        [f"{'untrained' if state else 'trained'}, stage {stage}" for state, stage in lines],
        caption,
    )
    arrays = {
        f"{i}.{drawn[source, state].label}.{'untrained' if state else 'trained'}.stage{stage}": field.numpy()
        for i, ((source, state, stage), field) in enumerate(fields.items())
    }
    write(args, figure, arrays, rows, caption)
    print_table(
        ("network", "weights", "stage", "fraction", "side", "area"),
        [
            (
                str(row["network"]), str(row["weights"]), str(row["stage"]), f"{100 * row['fraction']:.0f} %",
                f"> {row['largest']}" if row["side"] is None else str(row["side"]),
                "" if row["area"] is None else f"{100 * row['area']:.1f} %",
            )
            for row in rows
        ],
        right={2, 3, 4, 5},
    )  # fmt: skip


def scan(args: argparse.Namespace) -> None:
    import numpy as np

    from ganglion.analysis.pictures import describe, plot_maps
    from ganglion.analysis.scan_maps import check_full, in_layer
    from ganglion.analysis.scans import layer_inputs, scan_layers
    from ganglion.errors import unknown

    if os.path.isdir(args.images[0]):
        args.parser.error(f"--image {args.images[0]}: it is a folder, expected an image")
    one = open_network(args, args.network, args.untrained)
    layers = scan_layers(one.network)
    first = [name for name in layers if name.startswith("stages.2.")] or list(layers)
    name = args.layer or first[0]
    if name not in layers:
        args.parser.error(f"--layer: {unknown('scan', name, layers)}")
    files, size = find_images(args), fit_size(args, one)
    (image,) = read_images(args, files, size)
    x, earlier = layer_inputs(one.network, as_input(one, image, _dtype(args)))[name]
    height, width = x.shape[2:]
    if args.view == "matrix":
        check_full(height, width, x.dtype)
    pixel = (height // 2, width // 2) if args.pixel is None else (args.pixel[0], args.pixel[1])
    maps = in_layer(layers[name], x, earlier, args.view, args.mode, pixel, args.normalise)
    routes = [f"{k}: {describe(route)}" for k, route in enumerate(maps.routes)]
    said = {
        "pixel": f"What pixel {pixel} of the map reads through the scan, and who reads it",
        "matrix": "The scan as a matrix: row, the pixel that reads; column, the pixel read",
        "diagonal": "What every pixel reads of itself",
        "rows": "What the pixels after a quarter, a half, three quarters and all of each route read",
    }[args.view]
    caption = _caption(
        f"{said}. Layer {name}, {height} x {width}; {', '.join(args.mode)}, mean over the channels",
        [one],
        args,
        1,
        size,
    )
    figure = plot_maps(
        maps.maps,
        [*routes, maps.whole],
        maps.rows,
        caption,
        image=None if args.view == "matrix" else np.asarray(image, dtype=np.float32) / 255,
        query=pixel if args.view == "pixel" else None,
        opacity=args.opacity,
    )
    table = [
        {
            "row": row,
            "map": column,
            "least": float(values.min()),
            "largest": float(values.max()),
            "sum": float(values.sum()),
        }
        for row, of_row in zip(maps.rows, maps.maps, strict=True)
        for column, values in zip([*routes, maps.whole], of_row, strict=True)
    ]
    arrays = {
        f"{i}.{k}": values.cpu().numpy()
        for i, of_row in enumerate(maps.maps)
        for k, values in enumerate(of_row)
    }
    write(args, figure, arrays, table, caption)
    columns = ("row", "map", "least", "largest", "sum")
    print_table(
        columns,
        [tuple(v if isinstance(v, str) else f"{v:.4g}" for v in row.values()) for row in table],
        {2, 3, 4},
    )


def similarity(args: argparse.Namespace) -> None:
    from ganglion.analysis import layer_names, layer_similarity, mean_off_diagonal
    from ganglion.analysis.pictures import plot_similarity

    sources = args.networks or list(FIGURE_5)
    if args.between and len(sources) != 2:
        args.parser.error(f"--between needs two networks, got {len(sources)}")
    features: Any = args.features[0] if args.features[0] in ("mixer", "scan", "block") else args.features
    files = find_images(args)
    if len(files) < 4:
        fail(args, f"{len(files)} image{'s' * (len(files) > 1)}: the estimate of similarity needs at least 4")
    drawn = [open_network(args, source, args.untrained) for source in sources]
    names = [layer_names(one.network, features) for one in drawn]  # before anything is computed
    size = fit_size(args, drawn[0])
    for one in drawn[1:]:
        if fit_size(args, one) != size:
            fail(args, f"{one.label} takes other images than {drawn[0].label}: expected --size")
    if args.between and (drawn[0].mean, drawn[0].std) != (drawn[1].mean, drawn[1].std):
        print(
            f"warning: {drawn[1].label} gets images normalised as {drawn[0].label} expects", file=sys.stderr
        )
    pairs = [(0, 1)] if args.between else [(i, i) for i in range(len(drawn))]
    counter = Counter(len(files) * len(pairs))
    matrices = []
    for i, j in pairs:
        images = (as_input(drawn[i], image, _dtype(args)) for image in read_images(args, files, size))
        batches = in_batches(counter.over(images, drawn[i].label), args.batch_size)
        other = drawn[j].network if i != j else None
        matrices.append(layer_similarity(drawn[i].network, batches, features, other).cpu())
    counter.close()
    what = f"Linear CKA between layers ({' '.join(args.features)}), unbiased, batches of {args.batch_size}"
    caption = _caption(what, drawn, args, len(files), size)
    titles = [drawn[i].label if i == j else f"{drawn[i].label}, {drawn[j].label}" for i, j in pairs]
    sides = (drawn[0].label, drawn[1].label) if args.between else ("layer", "layer")
    table = [
        {
            "network": drawn[i].label,
            "layer": a,
            "other": drawn[j].label,
            "other_layer": b,
            "cka": float(m[k, n]),
        }
        for (i, j), m in zip(pairs, matrices, strict=True)
        for k, a in enumerate(names[i])
        for n, b in enumerate(names[j])
    ]
    arrays = {
        f"{n}.{title}": matrix.numpy() for n, (title, matrix) in enumerate(zip(titles, matrices, strict=True))
    }
    write(args, plot_similarity(matrices, titles, caption, sides), arrays, table, caption)
    if not args.between:
        rows = [
            (one.label, str(len(m)), f"{mean_off_diagonal(m):.4f}")
            for one, m in zip(drawn, matrices, strict=True)
        ]
        print_table(("network", "layers", "mean off the diagonal"), rows, right={1, 2})


def memory(args: argparse.Namespace) -> None:
    import torch

    from ganglion.analysis.pictures import describe, plot_memory
    from ganglion.analysis.scan_statistics import QUANTILES, scan_statistics

    one = open_network(args, args.network, args.untrained)
    files, size = find_images(args), fit_size(args, one)
    counter = Counter(len(files))
    images = [
        as_input(one, image, _dtype(args))
        for image in counter.over(read_images(args, files, size), "reading")
    ]
    counter.close()
    found = scan_statistics(one.network, torch.cat(images))
    table = [
        {
            "layer": row.layer,
            "route": row.index,
            "way": describe(row.route),
            "height": row.size[0],
            "width": row.size[1],
        }
        | {f"steps_{100 * q:.0f}": steps for q, steps in zip(QUANTILES, row.steps, strict=True)}
        | {"lines": row.lines, "image_pixels": row.median * row.stride, "beyond": row.beyond}
        for row in found
    ]
    what = "Steps along each route until 1/e of what entered the state is left (5, 25, 50, 75, 95 %)"
    caption = _caption(what, [one], args, len(images), size)
    arrays = {"steps": [row.steps for row in found], "beyond": [row.beyond for row in found]}
    write(args, plot_memory(found, caption), arrays, table, caption)
    header = ("layer", "route", "map", *(f"{100 * q:.0f} %" for q in QUANTILES), "lines", "beyond the end")
    print_table(
        header,
        [
            (row.layer, str(row.index), f"{row.size[0]} x {row.size[1]}", *(f"{s:.1f}" for s in row.steps),
             f"{row.lines:.2f}", f"{100 * row.beyond:.0f} %")
            for row in found
        ],
        right=set(range(3, 10)),
    )  # fmt: skip


def connections(args: argparse.Namespace) -> None:
    import timm

    from ganglion.analysis.connections_plot import plot_connections
    from ganglion.errors import unknown

    if not timm.is_model(args.network):
        args.parser.error(unknown("model", args.network, timm.list_models()))
    network = timm.create_model(args.network, device="meta")
    rows = [
        {
            "stage": i,
            "layer": layer,
            "ganglion": stage.plan.is_ganglion(layer),
            "reads": " ".join(map(str, read)),
        }
        for i, stage in enumerate(getattr(network, "stages", ()))
        if hasattr(stage, "plan")
        for layer, read in enumerate(stage.plan.reads)
    ]
    write(args, plot_connections(network), {}, rows, "")
