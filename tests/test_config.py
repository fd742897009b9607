"""What is said of numbers out of range."""

from __future__ import annotations

import pytest

from ganglion.config import check_range, override
from ganglion.models import SparXConfig


@pytest.mark.parametrize(
    ("value", "bounds", "said"),
    [
        (1.5, {"low": 0, "high": 1}, "from 0 to 1"),
        (-1, {"low": 0}, "of at least 0"),
        (0, {"above": 0}, "above 0"),
        (0, {"above": 0, "high": 1}, "above 0 and of at most 1"),
        (1, {"low": 0, "below": 1}, "of at least 0 and below 1"),
        ([0.5, 120.0], {"low": 0, "high": 1}, "from 0 to 1"),
        (float("nan"), {"low": 0}, "of at least 0"),
        (float("inf"), {"low": 0}, "of at least 0"),
        (float("nan"), {}, "that is finite"),
    ],
    ids=str,
)
def test_out_of_range(value, bounds, said):
    with pytest.raises(ValueError) as error:
        check_range("data.x", value, **bounds)
    assert str(error.value) == f"data.x is {value!r}: expected a number {said}"


def test_in_range():
    check_range("x", None, 0, 1)
    for value in (0, 1, 0.5, [0, 1], ()):
        check_range("x", value, 0, 1)
    check_range("x", 1, above=0, below=2)
    check_range("x", -1e300)


def test_lists_of_recipes_are_one_value_for_each_stage():
    given = {"stride": [1, 1, 2, 1], "start": [None, 0, 0, 0], "backend": "torch"}
    found = override(SparXConfig(), given)
    assert (found.stride, found.start) == ((1, 1, 2, 1), (None, 0, 0, 0)) and given == {"backend": "torch"}
    assert found.plans()[0].ganglions == ()
