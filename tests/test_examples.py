from __future__ import annotations

import runpy
from pathlib import Path

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
