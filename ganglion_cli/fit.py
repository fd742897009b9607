"""Train a network: a recipe and anything that you change in it.

The arguments are read by Lightning's command line, which knows them from the classes that they build.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

_NEEDED = ("lightning", "jsonargparse")


def main(argv: Sequence[str]) -> int:
    """Run `ganglion fit` with the arguments after the verb. Returns the exit status."""
    try:
        from ganglion.tasks.fit import main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        print(f"ganglion fit: error: it needs {error.name}: pip install 'ganglion[train]'", file=sys.stderr)
        return 2
    return main(list(argv))
