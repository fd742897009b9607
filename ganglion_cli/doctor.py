"""What this machine has, what is missing, and whether every backend of the scan computes what it should."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import Any

from . import machine
from .common import print_json
from .options import say_loading

_EPILOG = "exit status: 0; 1 if something is broken, which the last lines name. What is optional and missing is not."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    say_loading("PyTorch and timm")
    report = examine()
    if args.json:
        print_json(report)
    else:
        _print(report)
    return 0 if report["ok"] else 1


def examine() -> dict[str, Any]:
    """All that is found, in plain types; `problems` says what is broken."""
    problems: list[str] = []
    needed, extras = machine.packages()
    for entry in needed:
        if not entry["ok"]:
            problems.append(
                f"{entry['name']} is {entry['version'] or 'not installed'}, expected {entry['wanted']}: "
                "pip install --upgrade ganglion"
            )
    report: dict[str, Any] = {
        **machine.system(),
        "packages": needed,
        "extras": extras,
        "compiler": machine.compiler(),
        "openmp": machine.openmp(),
        "storage": machine.storage(),
        "devices": [],
        "instruction_sets": {},
        "backends": [],
    }
    try:
        import ganglion
    except Exception as error:  # a broken torch raises OSError, ImportError, RuntimeError, AttributeError ...
        problems.append(f"import ganglion: {type(error).__name__}: {error}")
    else:
        report["ganglion"] = ganglion.__version__
        report |= _devices() | _backends(problems)
    return {"ok": not problems, "problems": problems, **report}


def _devices() -> dict[str, Any]:
    import torch

    from ganglion.ops import cpu

    devices = [{"name": "cpu", "description": f"{torch.get_num_threads()} threads", "memory": None}]
    for kind in ("cuda", "xpu"):
        backend = getattr(torch, kind)
        for i in range(backend.device_count() if backend.is_available() else 0):
            about = backend.get_device_properties(i)
            devices.append({"name": f"{kind}:{i}", "description": about.name, "memory": about.total_memory})
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "description": "Apple GPU", "memory": None})
    return {
        "devices": devices,
        "instruction_sets": {
            "torch": torch.backends.cpu.get_cpu_capability(),
            "ganglion": list(cpu.instruction_sets()),
            cpu.ISA_ENV: os.environ.get(cpu.ISA_ENV),
        },
    }


def _backends(problems: list[str]) -> dict[str, Any]:
    from ganglion.ops import dispatch
    from ganglion.ops.selftest import self_test

    found = []
    for status in dispatch.backends():
        tests = self_test(status.name) if status.available else []
        found.append(asdict(status) | {"self_test": [asdict(test) for test in tests]})
        problems += [
            f"backend {test.backend} on {test.device}: {test.problem}" for test in tests if test.problem
        ]
        if not status.available and "does not fit" in status.reason:
            problems.append(f"backend {status.name}: {status.reason}")
    request = os.environ.get(dispatch.ENV)
    try:
        import torch

        dispatch.choose("scan2d", torch.zeros(1, 1, 1, 1), d_state=1, dt_rank=1)
    except (ValueError, dispatch.BackendError) as error:
        problems.append(f"with {dispatch.ENV}={request}: {error}")
    return {"backends": found, dispatch.ENV: request}


def _print(report: dict[str, Any]) -> None:
    _section(
        "system",
        [
            ("ganglion", report.get("ganglion", "cannot be imported")),
            ("python", report["python"]),
            ("platform", report["platform"]),
        ],
    )
    _section("packages", [(e["name"], _version(e)) for e in report["packages"]])
    rows = []
    for extra in report["extras"]:
        there = ", ".join(f"{e['name']} {e['version'] or 'missing'}" for e in extra["packages"])
        rows.append((extra["name"], there if extra["complete"] else f"{there}: {extra['install']}"))
    _section("extras", rows)
    path, version = report["compiler"]["path"], report["compiler"]["version"]
    sets = report["instruction_sets"]
    _section(
        "processor",
        [
            ("cores", str(report["cores"])),
            (
                "compiler",
                f"{version} ({path})"
                if path
                else "none: needed to build the native scan and by torch.compile",
            ),
            ("instruction sets", ", ".join(sets.get("ganglion", [])) or "none built"),
            ("torch uses", sets.get("torch", "?")),
            ("OpenMP", ", ".join(f"{k}={v}" for k, v in report["openmp"].items() if v) or "its defaults"),
        ],
    )
    _section("devices", [(d["name"], d["description"] + _memory(d["memory"])) for d in report["devices"]])
    _section(
        "backends of the scan, from fast to slow", [row for b in report["backends"] for row in _backend(b)]
    )
    _section(
        "free space",
        [
            (
                entry["what"],
                f"{_bytes(entry['free'])}  {entry['path']}"
                + f"  ({entry['warning']})" * bool(entry["warning"]),
            )
            for entry in report["storage"]
        ],
    )
    for problem in report["problems"]:
        print(f"BROKEN: {problem}")
    if report["ok"]:
        print("all is well")


def _section(title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        print(title)
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            print(f"  {name:{width}}  {text}")
        print(flush=True)


def _version(entry: dict[str, Any]) -> str:
    return f"{entry['version'] or 'missing'}" + ("" if entry["ok"] else f", expected {entry['wanted']}")


def _backend(backend: dict[str, Any]) -> list[tuple[str, str]]:
    if not backend["available"]:
        return [(backend["name"], f"not available: {backend['reason']}")]
    rows = []
    for test in backend["self_test"]:
        errors = ", ".join(f"{dtype} {error:.0e}" for dtype, error in test["errors"].items())
        verdict = test["problem"] or f"agrees with the reference on {test['device']} ({errors})"
        rows.append((backend["name"], f"{verdict}, {test['seconds']:.1f} s"))
    return rows


def _memory(size: int | None) -> str:
    return "" if size is None else f", {_bytes(size)}"


def _bytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
