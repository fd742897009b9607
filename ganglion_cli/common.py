"""What verbs share: kinds of arguments, tables, JSON, a line of progress, how a verb fails.

A verb's exit status is 0 if all went well; 1 if it could not do what it was asked, or found something wrong; 2 if the
arguments make no sense. In each case a line on stderr says what.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch

    from ganglion.tasks.loaded_model import LoadedModel
    from ganglion.training.metrics import Metrics


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def pixels(text: str) -> int:
    """A side of an image: a whole number from 1 to 32768."""
    if not text.isdecimal() or not 1 <= int(text) <= 32768:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1 and at most 32768")
    return int(text)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 0")
    return int(text)


def fraction(text: str) -> float:
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
    parser.add_argument(
        "--task", metavar="FOLDER", help="a task of your own that the checkpoint is of; its code runs"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The size of the images, and random weights in place of trained ones: see `open_source` and `check_size`."""
    parser.add_argument(
        "--size",
        type=pixels,
        nargs="+",
        metavar="N",
        help="side, or height and width, of the images (the network's)",
    )
    parser.add_argument("--untrained", action="store_true", help="weights as initialised from --seed")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of untrained weights (0)")


def check_size(args: argparse.Namespace) -> tuple[int, int] | None:
    """Height and width of --size, None without. Exits with status 2 for more than two numbers."""
    if args.size is not None and len(args.size) > 2:
        args.parser.error(f"--size {' '.join(map(str, args.size))}: expected one or two numbers")
    return None if args.size is None else (args.size[0], args.size[-1])


def add_overwrite(group: argparse._ActionsContainer) -> None:
    """The leave to write over files."""
    group.add_argument("--overwrite", action="store_true", help="write over files that are there already")


def check_writable(args: argparse.Namespace, *options: str) -> None:
    """Exit with status 2 unless the files that these options name can be written, and none is there already.

    To be called before anything is computed."""
    seen: dict[Path, str] = {}
    for option in options:
        path: Path | None = getattr(args, option.removeprefix("--").replace("-", "_"))
        if path is None:
            continue
        if path.is_dir() or not path.name:
            args.parser.error(f"{option} {path}: it is a folder, expected a file")
        if not os.access(path.parent, os.W_OK):
            args.parser.error(f"{option} {path}: cannot write to the folder {str(path.parent)!r}")
        if os.path.lexists(path) and not args.overwrite:
            args.parser.error(f"{option} {path}: it is there already. Expected another name, or --overwrite")
        if (other := seen.setdefault(path.resolve(), option)) != option:
            args.parser.error(f"{other} and {option} name the same file, {path}")


def need_extra(args: argparse.Namespace, option: str, package: str, extra: str) -> None:
    """Exit with status 2 where an option needs a package that is not installed."""
    if importlib.util.find_spec(package) is None:
        args.parser.error(f"{option} needs {package}: pip install 'ganglion[{extra}]'")


def fail(args: argparse.Namespace, error: object) -> NoReturn:
    """Say what is wrong with what the arguments name, on stderr and, where JSON was asked for, in it; exit with 1."""
    from ganglion.errors import shown

    text = "\n".join(map(shown, str(error).splitlines()))
    if getattr(args, "json", False):
        print_json({"error": text})
    print(f"{args.parser.prog}: error: {text}", file=sys.stderr)
    sys.exit(1)


def print_json(value: Any) -> None:
    """Print what any reader of JSON takes: a float that is not finite is null."""
    print(json.dumps(finite(value), indent=2, allow_nan=False))


def finite(value: Any) -> Any:
    """`value` as any reader of JSON takes it: a float that is not finite is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value


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


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows, at least one, of the same columns. Raises OSError."""
    from ganglion.errors import shown
    from ganglion.files import replacing

    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: shown(v) if isinstance(v, str) else v for key, v in row.items()})


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: set[int]) -> None:
    """Columns as wide as their widest entry; those in `right` are aligned to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, strict=True)
        padded = (text.rjust(w) if i in right else text.ljust(w) for i, (text, w) in enumerate(cells))
        print(("  " + "  ".join(padded)).rstrip())


def titled(title: str) -> tuple[str, str]:
    """A title, and what stands behind a value: `top-1 %` is shown as `top-1` and ` %`."""
    return title.removesuffix(" %"), " %" if title.endswith(" %") else ""


def as_text(name: str, value: float) -> str:
    """A value of a network's metrics as tables show it."""
    from ganglion.training.metrics import as_text

    return as_text(name, value)


class ProgressLine:
    """How far an evaluation is, on stderr: one line that changes on a terminal, else a line every 10 seconds.

    monitor: name of the value that is shown meanwhile.
    """

    def __init__(self, total: int, monitor: str, title: str = ""):
        self._total, self._monitor, self._title = total, monitor, title
        self._terminal = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    def __call__(self, metrics: Metrics) -> None:
        now = time.monotonic()
        if now - self._shown < (0.2 if self._terminal else 10):
            return
        self._shown = now
        done, name = metrics.images, self._monitor
        rate = done / (now - self._start)
        left = timedelta(seconds=round((self._total - done) / rate)) if rate else "?"
        title, unit = titled(metrics.TITLES.get(name, name))
        start = time.monotonic()
        value = f"{title} {as_text(name, metrics.values()[name])}{unit}"
        # Some take seconds over all images so far: at most a twentieth of the time is spent on that.
        self._shown = now + 19 * (time.monotonic() - start)
        text = f"{self._title}{done}/{self._total} images, {value}, {rate:.1f} images/s, {left} left"
        print(
            f"\r{text}\x1b[K" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr
        )

    def close(self) -> None:
        """Leave the terminal's line empty for what comes."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr)


def load(args: argparse.Namespace) -> LoadedModel:
    """The network that --checkpoint and --model name. Exits with status 1 where it cannot be loaded."""
    from ganglion.tasks.loaded_model import load_model

    try:
        return load_model(args.checkpoint or args.model, model=args.model, task=args.task)
    except (ValueError, OSError) as error:
        fail(args, error)


def open_source(args: argparse.Namespace, source: str) -> LoadedModel:
    """The network of a name (its published weights), a file, a folder, or NAME=FILE; with --untrained, of a name with
    weights as initialised from --seed. Exits with status 1 where it cannot be loaded."""
    from ganglion.tasks.loaded_model import load_model

    name, equals, file = source.partition("=")
    named = bool(equals) and not os.path.lexists(source)
    task = getattr(args, "task", None)
    try:
        if args.untrained:
            return _untrained(source, args.seed)
        return load_model(file, model=name, task=task) if named else load_model(source, task=task)
    except (ValueError, OSError) as error:
        hint = " (NAME=FILE), or --untrained" if "published weights" in str(error) else ""
        fail(args, f"{error}{hint}")


def _untrained(name: str, seed: int) -> LoadedModel:
    """Raises ValueError for what is no name."""
    import timm
    import torch
    from timm.data import resolve_model_data_config

    from ganglion.errors import unknown
    from ganglion.tasks import DEFAULT, find_task
    from ganglion.tasks.loaded_model import LoadedModel

    if not timm.is_model(name):
        raise ValueError(f"--untrained: {unknown('model', name, timm.list_models())}")
    torch.manual_seed(seed)
    network = timm.create_model(name).eval()
    return LoadedModel(
        name=name,
        network=network,
        data_config=resolve_model_data_config(network),
        class_names=None,
        description=f"untrained (seed {seed})",
        task=find_task(DEFAULT),
    )
