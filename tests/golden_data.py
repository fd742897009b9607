"""Golden data for the tests: what the published networks compute from deterministic weights.

``tests/golden/README.md`` says what each file holds. Typical use::

    golden = load("vmamba/vmamba_tiny_s1l8")
    published = golden.state_dict()                # published names -> float32 tensors
    x = image(2, 224, 224, seed=0)
    logits = golden["2x3x224x224.s0.logits_f64"]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden.golden_weights import fill, golden_input, golden_vector, slice_indices

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """One golden file: `meta` is its .json, `arrays` its .npz."""

    name: str
    meta: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self.arrays:
            near = [k for k in self.arrays if k.split(".")[0] == key.split(".")[0]][:8]
            raise KeyError(
                f"{self.name}.npz has no {key!r}, but {near or sorted(self.arrays)[:8]} and others"
            )
        return torch.from_numpy(np.array(self.arrays[key]))

    def shapes(self, case: str | None = None) -> dict[str, list[int]]:
        """Published tensor names -> shapes, in the published order. `case` picks one of several."""
        return dict(self.case(case)["state_dict"])

    def case(self, case: str | None) -> Mapping[str, Any]:
        if case is None:
            return self.meta
        return self.meta["cases" if "cases" in self.meta else "variants"][case]

    def cases(self) -> list[str]:
        return list(self.meta["cases" if "cases" in self.meta else "variants"])

    def state_dict(self, case: str | None = None) -> dict[str, torch.Tensor]:
        """The deterministic weights under their published names (float32; counters int64)."""
        fill_name = self.case(case).get("fill_name", case or self.name.split("/")[-1])
        return {k: torch.from_numpy(np.array(v)) for k, v in fill(fill_name, self.shapes(case)).items()}

    def summary_error(self, prefix: str, tensor: torch.Tensor, sep: str = ".") -> float:
        """Largest deviation of `tensor` from the summary stored as `<prefix><sep>{shape,mean,std,slice}`.

        Relative to the golden standard deviation; infinite when the shapes differ.
        """
        stored = {part: self.arrays[f"{prefix}{sep}{part}"] for part in ("shape", "mean", "std", "slice")}
        if list(tensor.shape) != stored["shape"].tolist():
            return float("inf")
        flat = tensor.detach().double().contiguous().reshape(-1).numpy()
        deviations = [
            np.abs(flat[slice_indices(flat.size)] - stored["slice"]).max(),
            abs(flat.mean() - stored["mean"]),
            abs(flat.std() - stored["std"]),
        ]
        return float(np.max(deviations) / max(float(stored["std"]), 1e-12))


@cache
def load(name: str) -> Golden:
    """The golden file `name`, e.g. ``"ops"``, ``"vmamba/ss2d"``, ``"sparx/sparx_mamba_t"``."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return Golden(name, json.loads((GOLDEN / f"{name}.json").read_text()), dict(arrays))


def image(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """The (batch, 3, height, width) float32 input the golden outputs belong to."""
    return torch.from_numpy(golden_input(batch, height, width, seed=seed))


def vector(shape: tuple[int, ...] | list[int], seed: int = 0) -> torch.Tensor:
    """The fixed standard normal float32 tensor used as input or cotangent of the op goldens."""
    return torch.from_numpy(golden_vector(int(np.prod(shape)), seed=seed)).reshape(tuple(shape))


def at_slice(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of `tensor` that the goldens keep of large gradients."""
    flat = tensor.detach().reshape(-1)
    return flat[torch.from_numpy(slice_indices(flat.numel()))]
