"""Run timm's own tests/test_models.py, unmodified, on this library's tiny models.

    python tests/timm_suite/run.py [pytest arguments]

The tests are in timm's source distribution only. It is fetched once, in the version that is installed, into
build/. Without a network the suite is skipped and says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

#: Python before 3.11.4 has no filters.
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build"
FILES = ("pyproject.toml", "tests/__init__.py", "tests/test_models.py")


def fetch(release: str) -> Path:
    """The folder with timm's tests. Raises RuntimeError with the reason if they cannot be had."""
    folder = BUILD / release
    if (folder / FILES[-1]).is_file():
        return folder
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        requirement = release.replace("-", "==")
        options = ["--quiet", "--no-deps", "--no-binary", "timm"]
        command = [sys.executable, "-m", "pip", "download", *options, requirement]
        pip = subprocess.run(command, cwd=scratch, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if pip.returncode:
            raise RuntimeError(
                f"pip download {requirement}: {(pip.stderr.strip() or 'failed').splitlines()[-1]}"
            )
        with tarfile.open(next(Path(scratch).glob("timm-*.tar.gz"))) as archive:
            for name in FILES:
                archive.extract(f"{release}/{name}", scratch, **SAFELY)
        (Path(scratch) / release).rename(folder)
    return folder


def main() -> int:
    try:
        folder = fetch(f"timm-{version('timm')}")
    except (RuntimeError, OSError, KeyError) as error:
        print(f"SKIPPED timm's own tests/test_models.py: cannot fetch it: {error}", flush=True)
        return 0
    environment = {
        k: v for k, v in os.environ.items() if k != "GITHUB_ACTIONS"
    }  # there timm leaves out tests
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), environment.get("PYTHONPATH")]))
    environment.setdefault("OMP_NUM_THREADS", "1")
    print(f"timm's own tests/test_models.py ({folder.name}) on this library's tiny models:", flush=True)
    options = [
        "-p",
        "only_ganglion",
        "-p",
        "no:cacheprovider",
        "-c",
        "pyproject.toml",
        "--rootdir",
        ".",
        "-q",
    ]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, FILES[-1], *sys.argv[1:]],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
