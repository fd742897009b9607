"""`ganglion`, the command. A verb is a module with `add_arguments(parser)` and `run(args) -> int`.

Verbs import what they need when they run, so that help and errors in the arguments come at once. For the same
reason this package lies beside `ganglion`, whose import brings PyTorch and timm.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import backends, bench, doctor, draw, explore, export, fit, info, networks, predict, push, validate
from .common import print_json
from .options import Parser

VERBS = {
    "fit": fit,
    "validate": validate,
    "predict": predict,
    "info": info,
    "list": networks,
    "draw": draw,
    "explore": explore,
    "export": export,
    "push": push,
    "bench": bench,
    "backends": backends,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit status; arguments that make no sense exit with status 2 and say why."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        # Names of files and classes are printed on any terminal: what its encoding does not have is escaped.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if "torch" not in sys.modules and "GOMP_SPINCOUNT" not in os.environ:
        # OpenMP's threads spin at barriers. Where another process, such as a loader's, wants the same core, a training
        # step then takes thirty times as long.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        if argv[:1] == ["fit"]:
            return fit.main(argv[1:])
        if not argv:
            _parser().print_help(sys.stderr)
            return 2
        args = _parser().parse_args(argv)
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of our output, `head` for example, has seen enough. What is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MemoryError, RuntimeError) as error:
        said = str(error).partition("\n")[0] or "MemoryError"
        if not isinstance(error, MemoryError) and not any(
            words in said for words in ("out of memory", "allocate memory")
        ):
            raise
        message = f"out of memory: {said}. Smaller batches or images need less"
        if "--json" in argv:
            print_json({"error": message})
        print(f"ganglion {argv[0]}: error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


class _Version(argparse.Action):
    """Prints the versions that a report of a fault needs."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        from .fields import version as own

        found = [f"ganglion {own()}"]
        for name in ("torch", "timm", "lightning"):
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                found.append(f"no {name}")
        print(", ".join([*found, f"Python {sys.version.split()[0]}"]))
        sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ganglion", description="VMamba and SparX: backbones that scan.")
    parser.add_argument("--version", nargs=0, action=_Version, help="print the versions")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True, parser_class=Parser)
    for name, module in VERBS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        verb = verbs.add_parser(name, help=summary, description=summary)
        if module is not fit:  # it reads its own arguments
            module.add_arguments(verb)
            verb.set_defaults(run=module.run, parser=verb)
    return parser
