"""The scan's backends, from fast to slow, and why one is not available."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from .common import print_json
from .options import say_loading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    say_loading("PyTorch")

    from ganglion.ops import backends

    found = backends()
    if args.json:
        print_json([asdict(status) for status in found])
        return 0
    for status in found:
        print(f"{status.name:8} {'available' if status.available else 'not available: ' + status.reason}")
    return 0
