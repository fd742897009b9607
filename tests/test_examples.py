from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import torch

from ganglion.models.backbone import Stage
from ganglion.models.connections import sparx

EXAMPLE = Path(__file__).parents[1] / "examples" / "connections_convnext.py"


def test_connections_over_convnext_blocks_run_and_train(capsys):
    names = runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out == "ganglions (0, 2, 4, 6, 8) output (2, 96, 14, 14)\n"
    plan = sparx(depth=3, stride=2, window=1)
    stage = Stage(None, [names["GanglionConvNeXtBlock"](12, len(read)) for read in plan.reads], plan)
    stage(torch.randn(2, 12, 6, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in stage.parameters())


def test_the_example_is_as_short_as_promised():
    code = EXAMPLE.read_text().split('if __name__ == "__main__":')[0]
    body = code[code.index("class ") :]
    assert len([line for line in body.splitlines() if line.strip()]) < 30


def test_the_picture_of_the_readme_is_drawn_by_the_scan(tmp_path):
    pictures = Path(__file__).parents[1] / "docs" / "pictures"
    names = runpy.run_path(str(pictures / "routes.py"))
    names["draw"](tmp_path / "routes.svg")
    drawn = (tmp_path / "routes.svg").read_text()
    shown = (pictures / "routes.svg").read_text()
    assert (
        drawn.count("<path") == shown.count("<path") and drawn.count("<image") == shown.count("<image") == 6
    )
    assert (
        len(shown) < 100_000 and "docs/pictures/routes.svg" in (pictures.parents[1] / "README.md").read_text()
    )
    seen, (row, col) = names["influence"](names["pattern"]("cross2d")), names["PIXEL"]
    for step in (1, 2, 3):  # along its row and column, at equal distance, more than along the diagonal
        along = [seen[row, col + step], seen[row, col - step], seen[row + step, col], seen[row - step, col]]
        assert np.ptp(along) < 0.1 and min(along) > 2 * seen[row + step, col + step]
