"""`ganglion doctor`: what it finds here, and that it sees what is broken."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from ganglion.ops import cpu, dispatch, selftest
from ganglion_cli import machine, main


def doctor(capsys, status: int = 0) -> dict:
    assert main(["doctor", "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_what_is_here(capsys):
    report = doctor(capsys)
    assert report["ok"] and report["problems"] == []
    versions = {entry["name"]: entry["version"] for entry in report["packages"]}
    assert versions["torch"] == torch.__version__.partition("+")[0] and versions["timm"]
    extras = {extra["name"]: extra for extra in report["extras"]}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert extras.keys() == project["optional-dependencies"].keys() - {"dev"}
    assert extras["train"]["install"] == "pip install 'ganglion[train]'"
    assert report["instruction_sets"]["ganglion"] == list(cpu.instruction_sets())
    assert [b["name"] for b in report["backends"]] == list(dispatch.BACKENDS)
    for backend in report["backends"]:
        assert backend["available"] == bool(backend["self_test"]) == (not backend["reason"])
        for test in backend["self_test"]:
            assert 0 < test["errors"]["float32"] < 1e-5 < test["errors"]["bfloat16"] < 1e-2
    assert {place["what"] for place in report["storage"]} >= {"this folder", "temporary files"}
    assert all(place["free"] >= 0 for place in report["storage"])


def test_for_people(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("all is well\n") and "torch   agrees with the reference on cpu" in out
    assert max(map(len, out.splitlines())) < 200


def test_a_backend_that_computes_something_else_is_broken(capsys, monkeypatch):
    forward = dispatch.BACKENDS["torch"].scan2d.forward

    def wrong(*args):
        y, carry = forward(*args)
        return y * 1.01, carry

    monkeypatch.setattr(dispatch.BACKENDS["torch"].scan2d, "forward", wrong)
    report = doctor(capsys, status=1)
    assert [p for p in report["problems"] if p.startswith("backend torch on cpu: float32: relative error")]


@pytest.mark.parametrize("value", [float("nan"), None])
def test_a_backend_that_fails_is_broken(capsys, monkeypatch, value):
    def failing(*args):
        if value is None:
            raise RuntimeError("no kernel image\nand more")
        return value

    monkeypatch.setattr(selftest, "_worst_error", failing)
    report = doctor(capsys, status=1)
    assert not report["ok"] and all(
        b["self_test"][0]["problem"] for b in report["backends"] if b["available"]
    )


def test_a_backend_that_is_forced_and_is_not_here(capsys, monkeypatch):
    monkeypatch.setenv(dispatch.ENV, "cpuu")
    assert "Did you mean 'cpu'?" in doctor(capsys, status=1)["problems"][0]


def test_packages_that_are_missing_or_too_old(capsys, monkeypatch):
    versions = {"timm": "0.9.16", "matplotlib": None}
    found = machine.importlib.metadata.version

    def version(name):
        if versions.get(name, "") is None:
            raise machine.importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or found(name)

    monkeypatch.setattr(machine.importlib.metadata, "version", version)
    report = doctor(capsys, status=1)
    assert len(report["problems"]) == 1 and report["problems"][0].startswith("timm is 0.9.16, expected >=")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "matplotlib missing: pip install 'ganglion[viz]'" in out and "BROKEN: timm is 0.9.16" in out


def test_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; from ganglion_cli import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "BROKEN: import ganglion: ModuleNotFoundError" in done.stdout and "free space" in done.stdout


@pytest.mark.parametrize(
    ("version", "wanted", "enough"),
    [
        ("2.11.0+cpu", ">=2.11", True),
        ("2.9.1", ">=2.11", False),
        ("1.0.31.dev0", ">=1.0.31", True),
        ("1", "", True),
    ],
)
def test_versions(version, wanted, enough):
    assert machine._satisfies(version, wanted) == enough
