"""The figure shows every layer and every connection of the plan, and nothing else."""

from __future__ import annotations

import sys
from collections import Counter
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import FancyBboxPatch, PathPatch

from ganglion.analysis import connections_plot as drawing
from ganglion.analysis.connections_plot import plot_connections
from ganglion.models.connections import STAGE_INPUT, dgc, plain, sparx

TINY = [
    plain(2),
    sparx(2, stride=1, window=None, start=1),
    sparx(7, stride=2, window=3),
    sparx(2, stride=1, window=None),
]


@pytest.mark.parametrize("plans", [TINY, [dgc(7, stride=2)]], ids=["tiny", "dgc"])
def test_layers_and_connections(plans):
    figure = plot_connections(plans)
    assert len(figure.axes) == len(plans)
    for axes, plan in zip(figure.axes, plans, strict=True):
        boxes = [p for p in axes.patches if isinstance(p, FancyBboxPatch)]
        ganglions = [i for i, box in enumerate(boxes) if to_hex(box.get_facecolor()) == drawing._GANGLION]
        assert (len(boxes), tuple(ganglions)) == (plan.depth, plan.ganglions)

        found = Counter()
        for arc in (p for p in axes.patches if isinstance(p, PathPatch)):
            start, end = arc.get_path().vertices[[0, -1], 0].round().astype(int)
            found[int(start), int(end), to_hex(arc.get_edgecolor())] += 1
        expected = Counter()
        for target, read in enumerate(plan.reads):
            for source in read:
                if source == STAGE_INPUT:
                    colour = drawing._STAGE
                else:
                    colour = drawing._INTER if plan.is_ganglion(source) else drawing._INTRA
                expected[source, target, colour] += 1
        assert found == expected

        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for patch in axes.patches:
            box = patch.get_extents().transformed(axes.transData.inverted())
            assert left <= box.x0 and box.x1 <= right and bottom <= box.y0 and box.y1 <= top, "off the page"


def test_saves_what_the_suffix_says(tmp_path):
    plot_connections(TINY, tmp_path / "plan.png")
    plot_connections(TINY, tmp_path / "plan.svg")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "plan.svg").getroot().tag.endswith("svg")


def test_a_network_without_plans():
    with pytest.raises(TypeError, match="Identity has no connection plans: expected a network"):
        from torch import nn

        plot_connections(nn.Identity())


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"ganglion\[viz\]"):
        plot_connections(TINY)
