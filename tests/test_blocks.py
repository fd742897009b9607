"""Every block of code of every page runs: Python as it stands, with tiny networks; commands up to where they would read
data, so that options, recipes and settings that are no more are found."""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ganglion.compat.mamba_ssm
from ganglion.heads import create_detector, create_segmentor
from ganglion_cli import _parser
from ganglion_cli.recipe import check, expand
from tests.cli.networks import export, picture
from tests.hub.networks import dense

ROOT = Path(__file__).parents[1]
PAGES = {str(p.relative_to(ROOT)): p.read_text() for p in (ROOT / "docs").rglob("*.md")}
PAGES |= {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "recipes/README.md")}

#: Pages whose Python other tests run, where they look at what comes out.
ELSEWHERE = {
    "README.md": "tests/test_docs.py",
    "docs/first_steps.md": "tests/test_site.py",
    "docs/analyses.md": "tests/test_pages.py",
    "docs/scan_as_attention.md": "tests/test_pages.py",
    "docs/export.md": "tests/export/test_model.py",
}

#: Lines of shell that are not run, and why.
NOT_RUN = {
    r"(\S*python -m )?pip install ": "it would change the installation",
    r"(make|\.ci/run)\b": "it is what runs the tests",
    r"git (tag|push)": "it publishes",
    r"(torchrun|srun|python) .*ganglion\.compat": "programs of others",
    r"\S+/pytest |\S*python -m pytest |\S*python tests/|cmake ": "it is what runs the tests",
    r"#|status=|\[ \$status|exit \$status|$": "a batch script around its one command",
}

TINY = {
    "vmamba_tiny_s1l8": "test_vmamba",
    "hf-hub:me/flowers": "outputs/other/model",
    'model.network.to("cuda")': "model.network",
}


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def commands(text: str) -> list[str]:
    """The lines of shell of a page, fenced or indented, without comments; a line that goes on is one."""
    lines = []
    for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.M | re.S):
        lines += block.replace("\\\n", " ").splitlines()
    indented = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S).replace("\\\n", " ")
    lines += re.findall(r"^    ((?:ganglion|python -m ganglion) .*)$", indented, re.M)
    return [re.sub(r"\s+# .*", "", line).strip() for line in lines]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if any(map(bool, commands(text)))])
def test_commands_are_understood(page, place):
    for name in ("RECIPE.yaml", "mine.yaml"):
        (place / name).write_text("model: {name: vmamba_nano}\n")
    for line in commands(PAGES[page]):
        words = re.split(r"\s[<>|]\s", line)[0].replace("...", "")
        words = re.sub(r"^(srun )?python -m ganglion ", "ganglion ", words)
        if not words.startswith("ganglion "):
            assert any(re.match(pattern, line) for pattern in NOT_RUN), (
                f"{page}: not run, and no reason: {line}"
            )
            continue
        _, verb, *rest = shlex.split(words)
        if verb == "fit":
            if "--help" not in rest:
                check(expand(rest))
            continue
        try:
            _parser().parse_args([verb, *rest])
        except SystemExit as stop:
            assert stop.code == 0, line


def set_up(page: str) -> None:
    """What the blocks of a page read."""
    for k, name in enumerate(("a.jpg", "b.jpg", "photo.jpg", "other.jpg", "rose.jpg", "tulip.jpg")):
        picture(Path(name), seed=k)
    export(Path("outputs/other/model"))
    if page == "docs/detection.md":
        dense(Path("outputs/detection/finetune/model"), "detection")
        made = create_detector("mask_rcnn", "test_vmamba", num_classes=80)
        torch.save(made.state_dict(), "mask_rcnn_vssm_fpn_coco_tiny_s_epoch_12.pth")
    elif page == "docs/segmentation.md":
        dense(Path("outputs/segmentation/finetune/model"), "segmentation")
        made = create_segmentor("upernet", "test_vmamba", num_classes=150)
        torch.save(made.state_dict(), "upernet_vssm_4xb4-160k_ade20k-512x512_tiny_s_iter_160000.pth")
    elif page == "recipes/README.md":
        for split in ("train", "test"):
            _cifar(Path(f"cifar10_{split}.npz"))


def _cifar(path: Path) -> None:
    """Ten images of ten classes, in the form that the page reads."""
    files = []
    for k in range(10):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (20 * k, 0, 0)).save(file, "jpeg")
        files.append(file.getvalue())
    ends = np.cumsum([0, *map(len, files)])
    np.savez(path, jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=ends, labels=np.arange(10))


def test_pages_that_others_run_are_there():
    assert all(python_blocks(PAGES[page]) and (ROOT / test).is_file() for page, test in ELSEWHERE.items())


@pytest.mark.parametrize(
    "page", [name for name, text in PAGES.items() if python_blocks(text) and name not in ELSEWHERE]
)
def test_python_runs(page, place, monkeypatch):
    set_up(page)
    monkeypatch.setattr(sys, "argv", ["make.py", ".", "target"])
    try:
        for block in python_blocks(PAGES[page]):
            for name, tiny in TINY.items():
                block = block.replace(name, tiny)
            exec(compile(block, page, "exec"), {"__name__": "__main__"})
    finally:
        ganglion.compat.mamba_ssm.uninstall()
    if page == "recipes/README.md":
        assert len(list(Path("target").rglob("*.jpg"))) == 2 * 9  # the page has no trucks
