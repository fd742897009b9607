"""Train a network: a recipe, and whatever you change in it.

The arguments are read by Lightning's command line, which takes them from the classes that they build.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run `ganglion fit` with the arguments after the verb. Returns the exit status."""
    missing = [name for name in ("lightning", "jsonargparse") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"ganglion fit: error: {' and '.join(missing)} not installed: pip install 'ganglion[train]'",
            file=sys.stderr,
        )
        return 2

    from ganglion.tasks.fit import main

    return main(list(argv))
