"""Whether a written file computes what the model does, where this library is not."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .program import Outputs, Traced

_SCRIPT = Path(__file__).with_name("proof_script.py")


class ExportError(RuntimeError):
    """A file that could not be made, or does not compute what the model does; it is not kept. report: as far as it is
    known, see `export_model`."""

    def __init__(self, said: str, report: dict[str, Any] | None = None):
        super().__init__(said)
        self.report: dict[str, Any] = report or {}


def prove(kind: str, file: Path, traced: Traced, *, library: Path | None = None) -> dict[str, Any]:
    """Run the file on three inputs in a fresh process without this library, and compare with the model.

    kind: what runs it, a function of `proof_script`. library: of custom operators that it needs. The inputs have the
    size that was exported and, where that is dynamic, the smallest and a larger, odd one; where the number of images
    is, one and three of them.

    Returns `checks`, an entry for each input, their largest errors, the agreement on the largest logit, the runtime,
    and the milliseconds of one input here and in eager mode. Raises ExportError where the file cannot be run.
    """
    inputs = _inputs(traced)
    with torch.no_grad():
        expected = [traced.network(x) for x in inputs]
        eager = []
        for _ in range(5):
            start = time.perf_counter()
            traced.network(inputs[0])
            eager.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory(prefix="ganglion-proof-") as folder:
        given, found = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, threads=torch.get_num_threads(), **{f"x{i}": x.numpy() for i, x in enumerate(inputs)})  # pyright: ignore[reportArgumentType]  numpy's stub gives keywords the type of allow_pickle
        done = subprocess.run(
            [sys.executable, "-I", str(_SCRIPT), kind, str(file), str(given), str(found), str(library or "")],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0 or not found.exists():
            said = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
            raise ExportError(f"{file.name} was written, but cannot be run in a fresh process: {said}")
        with np.load(found) as arrays:
            got = dict(arrays)
    checks = []
    for i, (x, ys) in enumerate(zip(inputs, expected, strict=True)):
        outputs = [got[f"y{i}_{j}"] for j in range(len(ys))]
        checks.append({"shape": list(x.shape)} | _compared(outputs, ys))
    return {
        "checks": checks,
        "max_absolute_error": max(c["max_absolute_error"] for c in checks),
        "max_relative_error": max(c["max_relative_error"] for c in checks),
        "top1_agreement": min(c["top1_agreement"] for c in checks),
        "runtime": str(got["runtime"]),
        "milliseconds": round(1e3 * float(got["seconds"]), 2),
        "eager_milliseconds": round(1e3 * min(eager), 2),
        "threads": torch.get_num_threads(),
    }


def compare(given: nn.Module, traced: Traced, images: Tensor | None) -> dict[str, Any]:
    """How far the traced network is from the one that it stands for.

    images: (N, channels, H, W); the inputs of the proof without them. Returns `images`, how many; `max_relative_error`
    and `top1_agreement` over all of them.
    """
    batches = _inputs(traced) if images is None else images.split(32)
    network = Outputs(given, softmax=traced.softmax)
    found, expected = [], []
    with torch.no_grad():
        for x in batches:
            found.append([y.numpy() for y in traced.network(x)])
            expected.append(network(x))
    checks = [_compared(y, z) for y, z in zip(found, expected, strict=True)]
    counts = [len(x) for x in batches]
    agreed = sum(c["top1_agreement"] * n for c, n in zip(checks, counts, strict=True))
    return {
        "images": sum(counts),
        "max_relative_error": max(c["max_relative_error"] for c in checks),
        "top1_agreement": agreed / sum(counts),
    }


def _inputs(traced: Traced) -> list[Tensor]:
    batch, channels, height, width = traced.example.shape
    shapes = [(height, width)] * 3
    if "size" in traced.dynamic:
        # Both ends, the larger one odd and not of the same ratio.
        shapes = [
            (height, width),
            (traced.least, traced.least),
            (height + height // 4 | 1, width + width // 8 | 1),
        ]
    images = (1, 1, 3) if "batch" in traced.dynamic else (batch,) * 3
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(n, channels, *shape, generator=generator) for n, shape in zip(images, shapes, strict=True)
    ]


def _compared(found: list[np.ndarray], expected: tuple[Tensor, ...]) -> dict[str, float]:
    """Errors are the largest of all outputs; the relative ones to the largest value of the output."""
    absolute, relative, agree = [], [], []
    for y, tensor in zip(found, expected, strict=True):
        z = tensor.numpy()
        if y.shape != z.shape or not np.isfinite(y).all():
            return {"max_absolute_error": np.inf, "max_relative_error": np.inf, "top1_agreement": 0.0}
        off = float(np.abs(y - z).max(initial=0))
        absolute.append(off)
        relative.append(off / max(float(np.abs(z).max(initial=0)), 1e-30))
        agree.append(float((y.argmax(1) == z.argmax(1)).mean()))
    return {
        "max_absolute_error": max(absolute),
        "max_relative_error": max(relative),
        "top1_agreement": min(agree),
    }
