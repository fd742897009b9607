"""Wording shared by the errors of the whole library."""

from __future__ import annotations

import difflib
import unicodedata
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
    few = near or choices[:_NEAREST]
    listed = "The nearest" if near else "The first"
    return f"unknown {kind} {value!r}.{hint} {listed} of {len(choices)}: {', '.join(few)}."


def shown(text: object) -> str:
    """`text`, such as a file's name, fit for a terminal, a log and JSON in UTF-8.

    Control characters and bytes that are no UTF-8 (which Python keeps in names as lone surrogates) become escapes such
    as `\\n` and `\\xff`. What can be printed stays as it is.
    """
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else _escaped(char)
        for char in str(text)
    )


def _escaped(char: str) -> str:
    byte = ord(char) - 0xDC00  # what os.fsdecode makes of a byte from 0x80 on
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode("ascii")
