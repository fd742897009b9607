"""`ganglion`, the command. A verb is a module with `add_arguments(parser)` and `run(args) -> int`.

Verbs import what they need when they run, so that help and errors in the arguments come at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import backends, info

VERBS = {"info": info, "backends": backends}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit status; arguments that make no sense exit with status 2 and say why."""
    parser = argparse.ArgumentParser(prog="ganglion", description="VMamba and SparX: backbones that scan.")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for name, module in VERBS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        verb = verbs.add_parser(name, help=summary, description=summary)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run, parser=verb)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:
        # The reader of our output, `head` for example, has seen enough.
        sys.stderr.close()
        return 0
