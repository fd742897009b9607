"""`ganglion fit` in processes of its own, for the tests of more than one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .runs import ROOT

_WORKER = Path(__file__).with_name("distributed_worker.py")


def losses_of(folder: Path, argv: list[str], *, processes: int = 2, crash_at: int = -1) -> list[list[float]]:
    """The loss of every step of each process, up to the step in which all of them die.

    argv: the words after `ganglion fit`.
    """
    folder.mkdir(exist_ok=True)
    launcher = [
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "--master-port=0",
        "--standalone",
    ]
    worker = [str(_WORKER), str(folder / "losses"), str(crash_at), *argv]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *worker],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=dict(os.environ),
        timeout=280,
    )
    assert (done.returncode == 0) == (crash_at < 0), done.stdout + done.stderr
    return [json.loads((folder / f"losses.{rank}.json").read_text()) for rank in range(processes)]
