from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ganglion.ops import PATTERNS, Route, pattern
from tests.golden_data import load

sides = st.integers(1, 9)
routes = st.builds(
    Route, transpose=st.booleans(), flip_rows=st.booleans(), flip_cols=st.booleans(), restart=st.booleans()
)


@given(routes, sides, sides)
def test_a_route_visits_every_pixel_once(route, height, width):
    assert sorted(route.order(height, width).tolist()) == list(range(height * width))


@given(routes)
def test_codes_are_unique_and_reversible(route):
    assert Route.from_code(route.code) == route


@given(routes, sides, sides)
def test_a_line_is_a_row_or_a_column(route, height, width):
    order, line = route.order(height, width), route.line(height, width)
    axis = order % width if route.transpose else order // width
    assert all(len(part.unique()) == 1 for part in axis.split(line))


@pytest.mark.parametrize("size", ["H3W5", "H4W4"])
@pytest.mark.parametrize("name", ["cross2d", "unidi", "bidi", "rot2d"])
def test_patterns_read_and_merge_as_published(name, size):
    golden = load("ops")
    key = f"csm.{name}.{size}.in_cf.out_cf."
    x = golden[key + "scan.in"]
    height, width = x.shape[2:]
    orders = [route.order(height, width) for route in pattern(name)]
    scanned = torch.stack([x.flatten(2)[:, :, order] for order in orders], dim=1)
    assert torch.equal(scanned, golden[key + "scan.out"])

    maps = golden[key + "merge.in"].flatten(3)
    merged = torch.zeros_like(maps[:, 0])
    for k, order in enumerate(orders):
        merged = merged.index_add(2, order, maps[:, k])
    assert torch.equal(merged, golden[key + "merge.out"])


def test_patterns_of_sparx():
    assert PATTERNS["ssm"] == (Route(),)
    assert PATTERNS["bi_ssm"] == (Route(), Route(flip_rows=True, flip_cols=True))


def test_unknown_names_and_codes_are_explained():
    with pytest.raises(ValueError, match=r"'cros2d'.*Did you mean 'cross2d'\?"):
        pattern("cros2d")
    with pytest.raises(ValueError, match="route code 16"):
        Route.from_code(16)
