"""A page to look at: what a network's scans do with an image, any pixel of any layer, in one HTML file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .common import add_source_arguments, check_size, check_writable, fail, open_source, pick_device
from .options import say_loading

_EXAMPLES = """\
examples:
  ganglion explore vmamba_tiny_s1l8 --image cat.jpg -o cat.html
  ganglion explore runs/one/model --image cat.jpg --image dog.jpg -o pets.html
  ganglion explore vmamba_tiny_s1l8=vssm1_tiny_0230s_ckpt_epoch_264.pth --image cat.jpg -o cat.html
  ganglion explore sparx_mamba_nano --untrained --size 224 --image cat.jpg -o cat.html

MODEL is a name (its published weights), an exported folder, a training checkpoint, or NAME=FILE for a published file.
The page needs no server and makes no request: open it, mail it, put it on any site.
exit status: 0; 1 if the network or an image cannot be used; 2 for arguments that make no sense
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="a network whose layers scan")
    parser.add_argument(
        "--image",
        dest="images",
        action="append",
        required=True,
        metavar="FILE",
        help="may be given several times",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the page (.html)")
    add_source_arguments(parser)
    parser.add_argument(
        "--no-fields", action="store_true", help="without receptive fields, which take most of the time"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write over a file that is there and is no page of this command",
    )


def run(args: argparse.Namespace) -> int:
    _check(args)
    say_loading("PyTorch and timm")

    from ganglion.errors import shown
    from ganglion.explorer import is_page, make_page

    if os.path.lexists(args.output) and not is_page(args.output):
        check_writable(args, "--output")
    model = open_source(args, args.model)
    model.network.to(pick_device(args))
    try:
        make_page(
            args.output,
            model,
            args.images,
            size=check_size(args),
            fields=not args.no_fields,
            overwrite=args.overwrite,
        )
    except (ValueError, TypeError, OSError) as error:
        fail(args, error)
    print(f"{shown(args.output)} ({args.output.stat().st_size / 1e6:.1f} MB)")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Exit with status 2, before anything is loaded, for what cannot be."""
    if args.output.suffix.lower() not in (".html", ".htm"):
        args.parser.error(f"--output {args.output}: expected a name that ends in .html")
    check_size(args)
    for image in args.images:
        if not os.path.lexists(image):
            args.parser.error(f"--image {image}: there is no such file")
        if os.path.isdir(image):
            args.parser.error(f"--image {image}: it is a folder, expected an image")
    if not os.path.lexists(args.output):
        check_writable(args, "--output")
