"""The rules of SparX (paper section 3.1) and the lists read off the published networks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganglion.models.connections import STAGE_INPUT, Plan, dgc, dsn, plain, sparx

S = STAGE_INPUT


@st.composite
def arguments(draw) -> dict:
    depth = draw(st.integers(1, 30))
    start = draw(st.integers(0, depth - 1))
    stride = draw(st.integers(1, 8))
    first = start + (depth - 1 - start) % stride
    stage_input = draw(st.booleans()) or first == 0
    return {
        "depth": depth,
        "stride": stride,
        "window": draw(st.none() | st.integers(1, 8)),
        "start": start,
        "stage_input": stage_input,
        "cross_stage": draw(st.booleans()) and stage_input,
    }


@st.composite
def plans(draw) -> Plan:
    """Any plan at all, hand-written ones included."""
    reads = []
    for layer in range(draw(st.integers(1, 12))):
        reads.append(draw(st.lists(st.integers(S, layer - 1), unique=True, max_size=5)))
    return Plan(reads=tuple(map(tuple, reads)))


@settings(deadline=None)
@given(arguments())
def test_sparx_follows_the_rules(kwargs):
    plan = sparx(**kwargs)
    depth, stride, window = kwargs["depth"], kwargs["stride"], kwargs["window"]
    assert plan.depth == depth
    assert plan.ganglions == tuple(sorted(range(depth - 1, kwargs["start"] - 1, -stride)))
    assert plan.is_ganglion(depth - 1)
    for layer, read in enumerate(plan.reads):
        assert plan.is_ganglion(layer) == (layer in plan.ganglions) == bool(read)
        if not read:
            continue
        assert all(feature < layer for feature in read)
        earlier = [g for g in plan.ganglions if g < layer]
        since = earlier[-1] + 1 if earlier else 0
        normal = [f for f in read if f >= 0 and f not in plan.ganglions]
        assert normal == list(range(since, layer))
        hubs = [f for f in read if f in plan.ganglions]
        stage_input_is_member = bool(earlier) and S in read
        assert window is None or len(hubs) + stage_input_is_member <= window
        assert kwargs["cross_stage"] or not stage_input_is_member
        assert hubs == earlier[len(earlier) - len(hubs) :]
        if not kwargs["cross_stage"]:
            assert hubs == (earlier if window is None else earlier[-window:])
            assert (S in read) == (kwargs["stage_input"] and not earlier)
            assert list(read) == [f for f in read if f == S] + normal + hubs
        assert layer - 1 in read, "the ganglion's own input is always among what it reads"


@settings(deadline=None)
@given(arguments())
def test_a_window_no_plan_fills_is_no_window(kwargs):
    assert sparx(**kwargs | {"window": 100}) == sparx(**kwargs | {"window": None})


@settings(deadline=None)
@given(plans())
def test_kept_features_live_exactly_as_long_as_they_are_read(plan):
    kept = {S} if plan.keeps(S) else set()
    ever = set(kept)
    for layer in range(plan.depth):
        assert set(plan.reads[layer]) <= kept, "read after it was freed, or never kept"
        kept -= set(plan.frees[layer])
        for feature in kept:
            assert any(feature in read for read in plan.reads[layer + 1 :]), "kept, but never read again"
        if plan.keeps(layer):
            kept.add(layer)
            ever.add(layer)
    assert not kept
    assert ever == {feature for read in plan.reads for feature in read}


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.data())
def test_dense_ganglions_read_everything(depth, stride, data):
    plan = dgc(depth, stride=stride, start=data.draw(st.integers(0, depth - 1)))
    assert plan.ganglions[-1] == depth - 1
    for layer in plan.ganglions:
        assert plan.reads[layer] == (S, *range(layer))


def trace(plan: Plan) -> dict[int, list[int]]:
    return {layer: list(plan.reads[layer]) for layer in plan.ganglions}


STAGES_1_AND_3 = [
    (sparx(2, stride=1, window=None, start=1), {1: [S, 0]}),
    (sparx(2, stride=1, window=None), {0: [S], 1: [0]}),
    (sparx(3, stride=2, window=None, start=2), {2: [S, 0, 1]}),
]
STAGE_2 = [
    (sparx(7, stride=2, window=3), {0: [S], 2: [1, 0], 4: [3, 0, 2], 6: [5, 0, 2, 4]}),
    (
        sparx(17, stride=3, window=3),
        {
            1: [S, 0],
            4: [2, 3, 1],
            7: [5, 6, 1, 4],
            10: [8, 9, 1, 4, 7],
            13: [11, 12, 4, 7, 10],
            16: [14, 15, 7, 10, 13],
        },
    ),
    (
        sparx(21, stride=3, window=3),
        {
            2: [S, 0, 1],
            5: [3, 4, 2],
            8: [6, 7, 2, 5],
            11: [9, 10, 2, 5, 8],
            14: [12, 13, 5, 8, 11],
            17: [15, 16, 8, 11, 14],
            20: [18, 19, 11, 14, 17],
        },
    ),
]


@pytest.mark.parametrize(("plan", "expected"), STAGES_1_AND_3 + STAGE_2)
def test_published_networks(plan, expected):
    assert trace(plan) == expected


@pytest.mark.parametrize(
    ("plan", "lengths"),
    [
        (sparx(7, stride=1, window=4), [1, 1, 2, 3, 4, 4, 4]),
        (sparx(7, stride=3, window=3), [1, 3, 4]),
        (sparx(7, stride=4, window=3), [3, 4]),
        (sparx(7, stride=2, window=2), [1, 2, 3, 3]),
        (sparx(7, stride=2, window=3, cross_stage=True), [1, 3, 4, 4]),
        (dgc(7, stride=2), [1, 3, 5, 7]),
        (dgc(2, stride=1), [1, 2]),
        (dsn(7), [1, 1, 2, 3, 4, 5, 6]),
        (dsn(2, stage_input=False), [1]),
        (plain(7), []),
    ],
)
def test_number_of_features_in_the_ablations(plan, lengths):
    assert [len(plan.reads[layer]) for layer in plan.ganglions] == lengths


def test_cross_stage_input_is_the_oldest_member_of_the_window():
    assert trace(sparx(7, stride=2, window=3, cross_stage=True)) == {
        0: [S],
        2: [1, S, 0],
        4: [3, S, 0, 2],
        6: [5, 0, 2, 4],
    }


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: sparx(7, stride=0, window=3), ValueError, "stride=0: must be at least 1"),
        (lambda: sparx(7, stride=2, window=0), ValueError, "window=0: must be at least 1"),
        (lambda: sparx(7, stride=2, window=-1), ValueError, "window=-1: must be at least 1"),
        (lambda: sparx(0, stride=2, window=1), ValueError, "depth=0: must be at least 1"),
        (lambda: sparx(7, stride=2, window=3, start=7), ValueError, r"start=7 is outside.*0 to 6"),
        (lambda: sparx(7, stride=2, window=3, start=-1), ValueError, r"start=-1 is outside.*0 to 6"),
        (lambda: sparx(7, stride=2.0, window=3), TypeError, "stride=2.0 is a float: expected an int"),
        (lambda: sparx(7, stride=2, window=True), TypeError, "window=True is a bool"),
        (
            lambda: sparx(7, stride=2, window=3, stage_input=False),
            ValueError,
            "layer 0 a ganglion with nothing to read",
        ),
        (
            lambda: sparx(7, stride=2, window=3, stage_input=False, cross_stage=True),
            ValueError,
            "cross_stage=True",
        ),
        (lambda: dgc(7, stride=2, stage_input=False), ValueError, "layer 0 a ganglion with nothing to read"),
        (lambda: dgc(7, stride=2, start=9), ValueError, "start=9 is outside"),
        (lambda: dsn(1, stage_input=False), ValueError, "nothing to read"),
        (lambda: dsn(0), ValueError, "depth=0"),
        (lambda: plain(0), ValueError, "depth=0: must be at least 1"),
        (lambda: Plan(reads=()), ValueError, "reads is empty"),
        (
            lambda: Plan(reads=((), (1,))),
            ValueError,
            r"reads\[1\]=\(1,\): no feature 1 before layer 1.* to 0",
        ),
        (lambda: Plan(reads=((-2,),)), ValueError, "no feature -2"),
        (lambda: Plan(reads=((), (0, 0))), ValueError, "read twice"),
        (lambda: Plan(reads=((), (0.0,))), TypeError, r"reads\[1\]=0.0 is a float"),
    ],
)
def test_bad_arguments_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_needs_no_torch():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); assert 'torch' not in sys.modules"
    from ganglion.models import connections

    subprocess.run([sys.executable, "-c", code, connections.__file__], check=True)
