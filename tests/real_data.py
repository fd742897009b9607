"""Real images, which are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_data(name: str) -> Path:
    """A folder below GANGLION_DATA (docs/environment.md). The test is skipped where there is none."""
    root = os.environ.get("GANGLION_DATA")
    if not root:
        pytest.skip(f"NOT TESTED on real images: GANGLION_DATA names no folder with {name}")
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"NOT TESTED on real images: there is no {folder}")
    return folder
