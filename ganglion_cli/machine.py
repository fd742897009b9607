"""What `ganglion doctor` finds out without importing anything but the standard library."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

#: Space below which a run or a download is likely to fail, in bytes.
_SMALL_DISK = 2**30
#: What containers have by default; batches of loader processes pass through it.
_SMALL_SHARED_MEMORY = 2**26 + 1


def system() -> dict[str, Any]:
    """Python, machine and cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"python": platform.python_version(), "platform": platform.platform(), "cores": cores}


def packages() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The packages that the library needs, and those of its extras, with what is wanted and what is there."""
    try:
        wanted = importlib.metadata.requires("ganglion") or []
    except importlib.metadata.PackageNotFoundError:
        return [], []
    needed: list[dict[str, Any]] = []
    extras: dict[str, list[dict[str, Any]]] = {}
    for line in wanted:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        name = re.match(r"[\w.-]+", requirement)
        if name is None or (extra is not None and extra[1] == "dev"):
            continue
        entry = _package(name[0], re.sub(r"^[\w.-]+(\[.*?\])?\s*", "", requirement).strip())
        (needed if extra is None else extras.setdefault(extra[1], [])).append(entry)
    return needed, [
        {
            "name": name,
            "complete": all(entry["ok"] for entry in entries),
            "packages": entries,
            "install": f"pip install 'ganglion[{name}]'",
        }
        for name, entries in extras.items()
    ]


def _package(name: str, wanted: str) -> dict[str, Any]:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {
        "name": name,
        "wanted": wanted,
        "version": version,
        "ok": version is not None and _satisfies(version, wanted),
    }


def _satisfies(version: str, wanted: str) -> bool:
    """Whether a version is at least what `>=` asks for, which is all that this library asks."""
    least = re.search(r">=\s*([\d.]+)", wanted)

    def numbers(text: str) -> list[int]:
        start = re.match(r"[\d.]*", text)
        return [int(part) for part in re.findall(r"\d+", start[0] if start else "")]

    return least is None or numbers(version) >= numbers(least[1])


def compiler() -> dict[str, Any]:
    """The C++ compiler that an installation from source, and torch.compile on a CPU, would use."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++", "cl")):
        if (path := shutil.which(name)) is None:
            continue
        try:
            done = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=10, check=False
            )
            version = (done.stdout or done.stderr).partition("\n")[0]
        except (OSError, subprocess.SubprocessError) as error:
            version = f"cannot be run: {error}"
        return {"path": path, "version": version}
    return {"path": None, "version": None}


def openmp() -> dict[str, Any]:
    """What the environment says of the threads that compute."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    return {name: os.environ.get(name) for name in names}


def storage() -> list[dict[str, Any]]:
    """Free bytes where runs, downloads, temporary files and the batches of loader processes go."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    paths = {
        "this folder": Path.cwd(),
        "weights of torch": Path(os.environ.get("TORCH_HOME", home / "torch")),
        "weights of timm": Path(os.environ.get("HF_HOME", home / "huggingface")),
        "temporary files": Path(tempfile.gettempdir()),
        "shared memory": Path("/dev/shm"),
    }
    found = []
    for what, path in paths.items():
        there = next((p for p in (path, *path.parents) if p.exists()), None)
        if there is None or (what == "shared memory" and there != path):
            continue
        free = shutil.disk_usage(there).free
        warning = ""
        if what == "shared memory" and free < _SMALL_SHARED_MEMORY:
            warning = "small: with data.workers, batches may not fit. In Docker: --shm-size 8g, or --ipc host"
        elif what != "shared memory" and free < _SMALL_DISK:
            warning = "small"
        found.append({"what": what, "path": str(path), "free": free, "warning": warning})
    return found


def processor() -> str:
    """Name and cores of the CPU, with the instruction sets that decide how fast it computes."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.M)
    flags = set((re.search(r"^flags\s*:\s*(.*)$", text, re.M) or ["", ""])[1].split())
    sets = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    words = [
        name[1] if name else platform.processor() or platform.machine(),
        f"{system()['cores']} cores",
        *sets,
    ]
    return ", ".join(words)
