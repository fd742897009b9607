"""The documentation as a site: its tables are the code's, its first page works, and it builds without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import ganglion
from ganglion_cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def tables():
    spec = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def marked(page: str, mark: str) -> str:
    return re.search(rf"<!-- {mark} -->\n\n(.*?)\n<!-- /{mark} -->", (DOCS / page).read_text(), re.S)[1]


def test_the_table_of_networks(capsys):
    """All names; what is counted, of some."""
    rows = marked("models.md", "networks").splitlines()
    assert [re.match(r"\| (\w+)", row)[1] for row in rows[2:]] == ganglion.list_models()
    assert main(["list", "test_*", "vmamba_nano", "vanilla_vmamba_tiny", "--markdown"]) == 0
    found = capsys.readouterr().out.splitlines()[2:]
    assert len(found) == 5 and set(found) <= set(rows)


def test_the_table_of_misprints():
    assert marked("misprints.md", "misprints") == tables().misprints()


def test_list_by_pattern(capsys):
    assert main(["list", "vanilla_*", "--json", "--pretrained"]) == 0
    assert '"paper_top1": 82.2' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["list", "vmamba_nan"])
    assert "Did you mean 'vmamba_nano'" in capsys.readouterr().err


def test_first_steps(tmp_path, monkeypatch, capsys):
    """What the page says, with fewer images and one epoch; its files are there afterwards."""
    pytest.importorskip("sklearn")
    text = (DOCS / "first_steps.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1], {})
    for folder in Path("digits").glob("*/*"):
        for image in sorted(folder.iterdir())[8:]:
            if image.name != "45.png":
                image.unlink()
    commands = [line.split()[1:] for line in re.findall(r"^ganglion [fvp]\w+ .+$", text, re.M)]
    (fit,) = [words for words in commands if words[0] == "fit"]
    fit = [str(ROOT / word) if word.startswith("recipes/") else word for word in fit]
    fit[fit.index("--trainer.max_epochs") + 1] = "1"
    fit += ["--schedule.warmup_epochs", "0"]
    assert main(fit) == 0
    for words in commands:
        if words[0] != "fit":
            assert main(words) == 0, words
    assert "digit_" in capsys.readouterr().out
    exec(
        re.sub(
            r"^    ", "", re.search(r"^    import ganglion\n(?:^    .*\n|\n)+", text, re.M)[0], flags=re.M
        ),
        {},
    )


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="NOT TESTED: mkdocs is not installed (ganglion[docs])")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "site" / "reference" / "ops" / "index.html").read_text()
    assert "scan2d" in page and "Raises ValueError for shapes that do not fit" in page
    outside = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page)
    assert outside == []
    assert dead_links(tmp_path / "site") == []


@pytest.mark.parametrize("name", ["look", "train"])
def test_notebooks_run(name, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="NOT TESTED: nbclient is not installed")
    pytest.importorskip("ipykernel")
    pytest.importorskip("sklearn")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(DOCS / "notebooks" / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    done = nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")


def dead_links(site: Path) -> list[str]:
    """The links of a built site to a file, or a place in one, that is not there."""
    pages = {path.resolve(): path.read_text() for path in site.rglob("*.html")}
    anchors = {path: set(re.findall(r'\b(?:id|name)="?([^"\s>]+)', text)) for path, text in pages.items()}
    dead = []
    for page, text in pages.items():
        if page.name == "404.html":
            continue
        for link in re.findall(r'<(?:a|link|script|img)\b[^>]*?\s(?:href|src)="([^"]+)"', text):
            address = urlsplit(unescape(link))
            if address.scheme or address.netloc:
                continue
            target = (page.parent / unquote(address.path)).resolve() if address.path else page
            if target.is_dir():
                target /= "index.html"
            place = unquote(address.fragment)
            if not target.is_file() or (place and target in anchors and place not in anchors[target]):
                dead.append(f"{page.relative_to(site.resolve())}: {link}")
    return dead


def test_dead_links_are_seen(tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="there">')
    links = ("b.html#there", "b.html", "#none", "b.html#none", "c.html", "https://elsewhere.org/x")
    (tmp_path / "a.html").write_text("".join(f'<a class="x" href="{link}">' for link in links))
    assert dead_links(tmp_path) == ["a.html: #none", "a.html: b.html#none", "a.html: c.html"]
