"""Set-up shared by all tests."""

from __future__ import annotations

import os

# Before torch is imported: its OpenMP threads spin at barriers, which costs minutes on shared cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
