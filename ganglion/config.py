"""What every configuration dataclass checks about itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from .errors import unknown


def check_literals(config: Any) -> None:
    """Raise ValueError, naming field, value and valid values, if a `Literal` field holds anything else."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        if get_origin(hint) is Literal and getattr(config, field.name) not in get_args(hint):
            raise ValueError(
                f"{type(config).__name__}.{field.name}: "
                + unknown("value", getattr(config, field.name), map(str, get_args(hint)))
            )


def check_choice(kind: str, value: object, literal: Any) -> None:
    """Raise ValueError, with the nearest valid value, unless `value` is one of a `Literal`'s."""
    if torch.compiler.is_compiling():  # which does not follow `get_args`
        return
    if value not in get_args(literal):
        raise ValueError(unknown(kind, value, map(str, get_args(literal))))


def check_positive(config: Any, *names: str) -> None:
    """Raise ValueError, naming field and value, unless the fields are (sequences of) numbers above zero."""
    for name in names:
        value = getattr(config, name)
        entries = value if isinstance(value, (tuple, list)) else (value,)
        if not entries or any(isinstance(v, str) or v <= 0 for v in entries):
            raise ValueError(f"{type(config).__name__}.{name} is {value!r}: expected values above zero")


def check_kernel(config: Any, name: str) -> None:
    """Raise ValueError, naming field and value, unless the field is an odd kernel size, or 0 for no convolution."""
    size = getattr(config, name)
    if size < 0 or (size > 0 and size % 2 == 0):
        raise ValueError(
            f"{type(config).__name__}.{name} is {size}: expected an odd kernel size, or 0 for none"
        )


def override(config: Any, kwargs: dict[str, Any]) -> Any:
    """`config` with the fields named in `kwargs` replaced; those entries are removed from `kwargs`.

    Lists, as YAML and JSON have them, become tuples."""
    values = {f.name: kwargs.pop(f.name) for f in dataclasses.fields(config) if f.name in kwargs}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return dataclasses.replace(config, **values)


def check_range(
    name: str,
    value: float | Sequence[float] | None,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raise ValueError, naming the field and its value, unless every number is finite, from `low` to `high`, above
    `above` and below `below`. None, of a field that may be left open, passes."""
    if value is None:
        return
    numbers = value if isinstance(value, Sequence) else (value,)
    for number in numbers:
        if (
            not math.isfinite(number)
            or (low is not None and number < low)
            or (high is not None and number > high)
            or (above is not None and number <= above)
            or (below is not None and number >= below)
        ):
            raise ValueError(f"{name} is {value!r}: expected {_range(low, high, above, below)}")


def _range(low: float | None, high: float | None, above: float | None, below: float | None) -> str:
    if low is not None and high is not None:
        return f"a number from {low:g} to {high:g}"
    lower = f"of at least {low:g}" if low is not None else f"above {above:g}" if above is not None else ""
    upper = f"of at most {high:g}" if high is not None else f"below {below:g}" if below is not None else ""
    return f"a number {' and '.join(filter(None, (lower, upper))) or 'that is finite'}"
