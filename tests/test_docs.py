from __future__ import annotations

import importlib.metadata
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import timm
import torch
import yaml

import ganglion
from ganglion.models.weight_names import to_official
from tests.cli.networks import NAMES, export, picture

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)


def test_readme_code_runs(tmp_path, monkeypatch):
    """The five lines, on tiny models, with a file in the published names."""
    _, code = blocks("README.md", "python")
    model = timm.create_model("test_vmamba", num_classes=1000)
    file = re.search(r'"(\S+\.pth)"', code)[1]
    torch.save({"model": to_official(model.state_dict(), "vmamba")}, tmp_path / file)
    monkeypatch.chdir(tmp_path)
    for name, tiny in (("vmamba_tiny_s1l8", "test_vmamba"), ("sparx_mamba_tiny", "test_sparx_mamba")):
        assert name in ganglion.list_models() and name in code
        code = code.replace(name, tiny)
    names: dict = {}
    exec(code, names)
    assert names["logits"].shape == (1, 1000)
    expected = model.eval()(torch.zeros(1, 3, 64, 64))
    torch.testing.assert_close(names["model"].eval()(torch.zeros(1, 3, 64, 64)), expected)
    assert [tuple(m.shape[2:]) for m in names["pyramid"]] == [(50, 82), (25, 41), (13, 21), (7, 11)]


def test_readme_prediction_runs(tmp_path, monkeypatch, capsys):
    """The three lines, on an exported tiny model."""
    code = blocks("README.md", "python")[0]
    folder = tmp_path / re.search(r'load_model\("([^"]+)"\)', code)[1]
    export(folder)
    for i, file in enumerate(re.findall(r'"(\w+\.jpg)"', code)):
        picture(tmp_path / file, seed=i)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["cat.jpg", "dog.jpg"]
    assert all(line.split()[1] in NAMES and 1 / 3 <= float(line.split()[2]) <= 1 for line in lines)


def test_readme_names_what_exists():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"`ganglion\.([\w.]+?)(?:\(\))?`", text):
        pkgutil.resolve_name(f"ganglion.{name}")
    for command in re.findall(r"^make (\w+)", "\n".join(blocks("README.md", "sh")), re.M):
        assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.M), command
    for link in re.findall(r"\]\(([^):#]+)[^):]*\)", text):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize(
    "package",
    [
        "ops",
        "compat",
        "layers",
        "models",
        "heads",
        "tasks",
        "training",
        "data",
        "analysis",
        "explorer",
        "export",
        "hub",
    ],
)
def test_architecture_names_every_module(package):
    (tree,) = [b for b in blocks("docs/architecture.md", "") if b.startswith("ganglion/")]
    part = re.search(rf"^  {package}/(.*?)(?=^  \w|^\w)", tree, re.M | re.S)[1]
    named = set(re.findall(r"\b(\w+\.py)\b", part)) | {
        f"{n}/" for n in re.findall(r"^    (\w+)/", part, re.M)
    }
    folder = ROOT / "ganglion" / package
    there = {p.name for p in folder.glob("*.py")} - {"__init__.py", "__main__.py"}
    there |= {f"{p.parent.name}/" for p in folder.glob("*/__init__.py")}
    assert named == there


def test_every_environment_variable_is_documented():
    sources = [
        p
        for folder in ("ganglion", "ganglion_cli", "tests", "benchmarks")
        for p in (ROOT / folder).rglob("*.py")
    ]
    read = {name for p in sources for name in re.findall(r"\b(GANGLION_[A-Z_]+)\b", p.read_text())}
    documented = set(re.findall(r"`(GANGLION_[A-Z_]+)`", (ROOT / "docs/environment.md").read_text()))
    assert read == documented


def test_tables_of_gpus_are_what_was_measured():
    """docs/gpu.md against docs/measurements."""
    assert subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu_pages.py", "--check"]).returncode == 0


def test_one_version():
    """The package's metadata read it from the source; nothing else states one."""
    assert importlib.metadata.version("ganglion") == ganglion.__version__
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.M)


def test_developer_files_are_well_formed():
    files = [ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff", *(ROOT / ".github").rglob("*.yml")]
    assert len(files) >= 7
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text()), dict), file
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ci = (ROOT / ".github/workflows/ci.yml").read_text()
    for name in (
        "torch",
        "torchvision",
    ):  # the lowest versions that are promised are the lowest that are tested
        (lowest,) = [d.partition(">=")[2] for d in dependencies if re.match(rf"{name}\b[>=]", d)]
        assert f"{name}=={lowest}.*" in ci
