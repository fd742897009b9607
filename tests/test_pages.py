"""The code of the pages on analyses runs, prints what the pages say, and draws their pictures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def run_page(name: str, folder: Path, monkeypatch) -> tuple[dict, str]:
    """What all blocks of Python of a page leave, run one after the other, and its text."""
    text = (DOCS / name).read_text()
    monkeypatch.chdir(folder)
    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        exec(block, names)
    return names, text


def test_scan_as_attention(tmp_path, monkeypatch, capsys):
    names, text = run_page("scan_as_attention.md", tmp_path, monkeypatch)
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "tensor(True)",
        "tensor(True) tensor(False)",
        "tensor(True)",
        "stages.0.blocks.0.mixer torch.Size([8, 12])",
    ]
    masks = names["masks"]
    assert (masks[0].triu(1) == 0).all() and (masks[2].tril(-1) == 0).all()
    assert (sum(masks) > 0).all()
    for picture in re.findall(r"\(pictures/(\w+\.svg)\)", text):
        drawn, shown = ((folder / picture).read_text() for folder in (tmp_path, DOCS / "pictures"))
        assert drawn.count("<image") == shown.count("<image") > 4
        assert len(shown) < 150_000


def test_analyses(tmp_path, monkeypatch, capsys):
    _, text = run_page("analyses.md", tmp_path, monkeypatch)
    squares, shape = capsys.readouterr().out.splitlines()
    assert squares.startswith("[(0.2, ") and shape == "torch.Size([7, 7])"
    import ganglion.analysis

    for name in re.findall(r"^\|.*\| ([^|]+) \|$", text, re.M)[2:]:
        for function in re.findall(r"`(?:ganglion\.)?(\w+)`", name):
            assert hasattr(ganglion.analysis, function) or hasattr(ganglion, function), function


@pytest.mark.parametrize("page", ["scan_as_attention.md", "analyses.md"])
def test_links_of_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^):#]+)\)", (DOCS / page).read_text()):
        assert (DOCS / link).exists(), link


def test_commands_of_the_page_are_understood():
    """Every `ganglion draw` of the page, up to where it would look for files."""
    from ganglion_cli import _parser

    for line in re.findall(r"^    ganglion (draw .+?)(?:  #.*)?$", (DOCS / "analyses.md").read_text(), re.M):
        args = _parser().parse_args(line.split())
        assert args.output is not None, line
