"""What verbs share: kinds of arguments, tables, a line of progress, how a verb fails."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import torch

    from ganglion.tasks.metrics import Counts


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 0")
    return int(text)


def share(text: str) -> float:
    """A number above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0 and up to 1")
    return value


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, its weights, and where it runs."""
    parser.add_argument("--model", metavar="NAME", help="network; not needed if the checkpoint says it")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="exported folder, training checkpoint (.ckpt) or published file; without, the published weights",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")


def fail(args: argparse.Namespace, error: object) -> NoReturn:
    """Say what is wrong with what the arguments name, and exit with status 2."""
    print(f"{args.parser.prog}: error: {error}", file=sys.stderr)
    sys.exit(2)


def pick_device(args: argparse.Namespace) -> torch.device:
    """The device asked for, or the GPU if there is one."""
    import torch

    if args.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        fail(args, f"--device {args.device}: {str(error).partition(chr(10))[0]}")
    return device


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: set[int]) -> None:
    """Columns as wide as their widest entry; those in `right` are aligned to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, strict=True)
        padded = (text.rjust(w) if i in right else text.ljust(w) for i, (text, w) in enumerate(cells))
        print(("  " + "  ".join(padded)).rstrip())


class Progress:
    """How far an evaluation is, on stderr: one line that changes on a terminal, else a line every 10 seconds."""

    def __init__(self, total: int, title: str = ""):
        self._total, self._title = total, title
        self._terminal = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    def __call__(self, counts: Counts) -> None:
        now = time.monotonic()
        if now - self._shown < (0.2 if self._terminal else 10):
            return
        self._shown = now
        done = counts.images
        rate = done / (now - self._start)
        left = timedelta(seconds=round((self._total - done) / rate)) if rate else "?"
        text = f"{self._title}{done}/{self._total} images, top-1 {counts.top1:.2f} %, {rate:.1f} images/s, {left} left"
        print(
            f"\r{text}\x1b[K" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr
        )

    def close(self) -> None:
        """Leave the terminal's line empty for what comes."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr)
