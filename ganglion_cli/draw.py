"""The papers' pictures of a network: receptive fields, maps of the scan, similarity of layers, memory, connections."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import draw_kinds
from .common import fail, fraction, natural, pixels, positive
from .draw_files import add_output, check_output
from .options import Parser, say_loading

MODES = ("CB", "CwBw", "CwBdtw", "ww")
NORMALISE = ("none", "minmax", "max")
VIEWS = ("pixel", "matrix", "diagonal", "rows")

_EXAMPLES = """\
examples:
  ganglion draw erf vmamba_tiny_s1l8 convnext_tiny --images photos --size 1024 -o erf.png
  ganglion draw erf runs/one/model --images photos --both --stage 0 1 2 3 -o erf.pdf
  ganglion draw scan runs/one/model --image dog.jpg --layer stages.2.blocks.0.mixer --pixel 7 9 -o dog.png
  ganglion draw similarity --images photos --untrained -o figure5.svg
  ganglion draw memory vmamba_tiny_s1l8 --images photos -o memory.png

NETWORK is a name (its published weights), an exported folder, a training checkpoint, or NAME=FILE for a published file.
exit status: 0; 1 if it could not be drawn; 2 for arguments that make no sense
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=Parser)

    def kind(name: str, draw: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        made = kinds.add_parser(name, help=summary, description=summary)
        made.set_defaults(parser=made, draw=draw)
        add_output(made)
        return made

    erf = kind("erf", draw_kinds.erf, "effective receptive fields (VMamba, Figure 10; SparX, Figure 4)")
    _networks(erf, "+")
    _images(erf, 50)
    erf.add_argument("--both", action="store_true", help="a row untrained, a row trained")
    erf.add_argument(
        "--stage", type=int, nargs="+", default=[-1], metavar="N", help="maps, from 0; -1 the last (-1)"
    )
    erf.add_argument(
        "--position", type=natural, nargs=2, metavar=("ROW", "COLUMN"), help="on that map (its centre)"
    )
    erf.add_argument(
        "--scale",
        choices=("raw", "log10"),
        default="raw",
        help="of the table: log10(map + 1) as RepLKNet's (raw)",
    )

    scan = kind(
        "scan",
        draw_kinds.scan,
        "what pixels read through the scan, and who reads them (VMamba, Figures 4 to 7)",
    )
    _networks(scan, None)
    scan.add_argument("--image", required=True, dest="images", nargs=1, metavar="FILE")
    _common(scan)
    scan.set_defaults(max_images=1)
    scan.add_argument(
        "--layer", metavar="NAME", help="a scan, as `--layer ?` lists them (the first of stage 3)"
    )
    scan.add_argument(
        "--view", choices=VIEWS, default="pixel", help="pixel, whole matrix, its diagonal or rows (pixel)"
    )
    scan.add_argument(
        "--pixel", type=natural, nargs=2, metavar=("ROW", "COLUMN"), help="on the layer's map (its centre)"
    )
    scan.add_argument("--mode", choices=MODES, nargs="+", default=["CwBdtw"], help="what is shown (CwBdtw)")
    scan.add_argument(
        "--normalise",
        choices=NORMALISE,
        default="none",
        help="each map, and the mean instead of the sum (none)",
    )
    scan.add_argument(
        "--opacity", type=fraction, default=0.75, metavar="X", help="of the maps over the image (0.75)"
    )

    similarity = kind(
        "similarity",
        draw_kinds.similarity,
        "CKA between layers (SparX, Figure 5, by default its four networks)",
    )
    _networks(similarity, "*")
    _images(similarity, 512)
    similarity.add_argument(
        "--batch-size", type=positive, default=32, metavar="N", help="images to a batch (32)"
    )
    similarity.add_argument(
        "--features",
        nargs="+",
        default=["mixer"],
        metavar="KIND",
        help="mixer, scan, block, or names of modules (mixer)",
    )
    similarity.add_argument("--between", action="store_true", help="between two networks, not within each")

    memory = kind("memory", draw_kinds.memory, "how far the scans remember, by layer and route")
    _networks(memory, None)
    _images(memory, 8)

    connections = kind(
        "connections", draw_kinds.connections, "which earlier features every layer reads (SparX, Figure 2)"
    )
    connections.add_argument("network", metavar="NETWORK")


def _networks(parser: argparse.ArgumentParser, count: str | None) -> None:
    parser.add_argument("network" if count is None else "networks", metavar="NETWORK", nargs=count)
    parser.add_argument("--untrained", action="store_true", help="weights as initialised, from --seed")


def _images(parser: argparse.ArgumentParser, most: int) -> None:
    parser.add_argument(
        "--images", required=True, nargs="+", metavar="PATH", help="images, folders of images"
    )
    parser.add_argument(
        "--max-images", type=positive, default=most, metavar="N", help=f"chosen by --seed ({most})"
    )
    _common(parser)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        type=pixels,
        nargs="+",
        metavar="N",
        help="side, or height and width, to resize to (the network's)",
    )
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="of images and untrained weights (0)"
    )
    parser.add_argument("--float64", action="store_true", help="compute in float64")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")


def run(args: argparse.Namespace) -> int:
    check_output(args)
    if len(getattr(args, "size", None) or ()) > 2:
        args.parser.error(f"--size {' '.join(map(str, args.size))}: expected one or two numbers")
    say_loading("PyTorch and timm")
    try:
        with _said():
            args.draw(args)
    except (ValueError, TypeError, IndexError) as error:
        fail(args, error)
    except (AssertionError, RuntimeError) as error:  # of a network to sizes that it refuses
        said = str(error).rstrip(".")
        fail(args, f"a network does not run on these images: {said}. Expected another --size")
    return 0


@contextmanager
def _said() -> Iterator[None]:
    """What analyses warn of, such as images that were left out, as lines on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *rest, **more: print(f"warning: {message}", file=sys.stderr)
        yield
