"""The table over image sizes, and its figure."""

from __future__ import annotations

import sys

import pytest
import timm

import ganglion  # noqa: F401 - registers the networks
from ganglion.analysis.resolution import paper_flops, plot_resolutions, resolutions
from ganglion.tasks.classification.metrics import Counts
from ganglion.tasks.evaluation import Result

SIZES = (224, 384, 512, 640, 768, 1024)


def result(size: int) -> Result:
    return Result(
        values={"top1": 80 - size / 100, "top5": 95 - size / 100, "loss": 1.0},
        titles=Counts.TITLES,
        images=size,
        skipped=0,
        images_per_second=1e4 / size,
        unreadable=(),
    )


@pytest.mark.parametrize("name", ["vmamba_tiny_s2l5", "sparx_mamba_tiny"])
def test_sizes_of_the_papers(name):
    rows = list(resolutions(timm.create_model(name, device="meta"), name, SIZES, result))
    assert [(row.size, row.result) for row in rows] == [(size, result(size)) for size in SIZES]
    assert [f"{row.flops / 1e9:.1f}" for row in rows] == [row.paper_flops for row in rows]


def test_what_the_papers_do_not_print():
    assert paper_flops("vmamba_tiny_s2l5", 256) is None
    assert paper_flops("test_vmamba", 224) is None
    assert paper_flops("sparx_mamba_base", 224) == "15.9"


def test_one_size_is_measured_when_it_is_asked_for():
    """So that a table can be printed as it grows."""
    measured = []
    model = timm.create_model("test_vmamba", device="meta", in_chans=1)
    rows = resolutions(
        model, "test_vmamba", (32, 64), lambda size: measured.append(size) or result(size), in_chans=1
    )
    assert next(rows).size == 32 and measured == [32]


def test_picture(tmp_path):
    model = timm.create_model("vmamba_tiny_s2l5", device="meta")
    rows = list(resolutions(model, "vmamba_tiny_s2l5", (224, 256, 384), result))
    figure = plot_resolutions(rows, "a title", tmp_path / "sizes.png")
    accuracy, flops, speed = figure.axes
    assert [list(line.get_xdata()) for line in accuracy.lines] == [[224, 256, 384]] * 2
    assert list(accuracy.lines[0].get_ydata()) == [row.result.values["top1"] for row in rows]
    assert list(flops.lines[0].get_ydata()) == [row.flops / 1e9 for row in rows]
    assert [list(flops.lines[1].get_xdata()), list(flops.lines[1].get_ydata())] == [[224, 384], [4.9, 14.3]]
    assert list(speed.lines[0].get_ydata()) == [row.result.images_per_second for row in rows]
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'ganglion\[viz\]'"):
        plot_resolutions([], "")
