"""Wording shared by the errors of the whole library."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Valid names that a message lists at most; of more, the nearest.
_MOST, _NEAREST = 20, 5


def unknown(kind: str, value: object, valid: Iterable[str]) -> str:
    """Message for a name that does not exist: the nearest valid one, then all of them, or of many the nearest few."""
    choices = sorted(valid)
    near = difflib.get_close_matches(str(value), choices, n=_NEAREST)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if len(choices) <= _MOST:
        return f"unknown {kind} {value!r}.{hint} Valid: {', '.join(choices)}."
    shown = near or choices[:_NEAREST]
    listed = "The nearest" if near else "The first"
    return f"unknown {kind} {value!r}.{hint} {listed} of {len(choices)}: {', '.join(shown)}."
