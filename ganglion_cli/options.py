"""Options by their whole names, the nearest of them where a name is none, and what is said before a slow import."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Takes options by their whole names, and says which one may have been meant."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        start, _, words = message.partition("unrecognized arguments: ")
        if words and not start:
            word = words.split()[0].partition("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            message = f"there is no option {word}." if word.startswith("-") else f"unexpected {words!r}."
            message += nearest(word, known) if word.startswith("-") else ""
        elif "invalid choice: " in message:
            choice = message.partition("invalid choice: ")[2].partition(" (choose from")[0].strip("'")
            choices = [str(c) for action in self._actions for c in action.choices or ()]
            message += nearest(choice, choices)
        print(f"{self.prog}: error: {message.rstrip('.')} (more: {self.prog} --help)", file=sys.stderr)
        sys.exit(2)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, left = self.parse_known_args(args, namespace)
        if left:
            getattr(found, "parser", self).error(f"unrecognized arguments: {' '.join(left)}")
        return found


def nearest(
    value: str, valid: Iterable[str], *, first: Sequence[str] = (), others: Mapping[str, str] | None = None
) -> str:
    """` Did you mean ...?` with the names most like the value, at most three; empty where none is like it.

    first: names that come before those. others: what to show for a name, if not itself.
    """
    found = [*first, *difflib.get_close_matches(value, list(valid), n=3, cutoff=0.65)]
    shown = list(dict.fromkeys(others[name] if others else name for name in found))[:3]
    return f" Did you mean {' or '.join(shown)}?" if shown else ""


def say_loading(what: str) -> None:
    """Say on stderr what is about to be imported for seconds, unless it is there or another process has said so."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0")))
    if "torch" not in sys.modules and rank == "0":
        print(f"loading {what} ...", file=sys.stderr, flush=True)
