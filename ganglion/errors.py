"""Wording shared by the errors of the whole library."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, value: object, valid: Iterable[str]) -> str:
    """Message for a name that does not exist: the nearest valid one, then all of them."""
    choices = sorted(valid)
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {value!r}.{hint} Valid: {', '.join(choices)}."
