"""Whether a backend of the scan computes on this machine what the reference does: a few small scans, in a second."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from .dispatch import BACKENDS
from .reference import scan2d_reference
from .routes import PATTERNS
from .scan2d_op import scan2d

#: Relative root-mean-square errors above which a result is wrong. A kernel that is wrong errs by about 1.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What one backend made of the test scans on one device.

    errors: by dtype, the worst relative root-mean-square error of the output and of every gradient.
    problem: what is wrong, empty if nothing is. seconds: how long it took, compiling included.
    """

    backend: str
    device: str
    errors: dict[str, float]
    problem: str
    seconds: float


def self_test(backend: str) -> list[SelfTest]:
    """Scan an image forward and backward with an available backend, on each kind of device that it serves here."""
    return [_on_device(backend, device) for device in _devices(backend)]


def _devices(backend: str) -> list[str]:
    served = BACKENDS[backend].DEVICES
    there = ["cpu"]
    there += ["cuda"] if torch.cuda.is_available() else []
    there += ["xpu"] if torch.xpu.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    return [device for device in there if served is None or device in served]


def _on_device(backend: str, device: str) -> SelfTest:
    start = time.perf_counter()
    errors: dict[str, float] = {}
    problem = ""
    for dtype, bound in BOUNDS.items():
        name = str(dtype).removeprefix("torch.")
        try:
            errors[name] = error = _worst_error(backend, device, dtype)
        except Exception as raised:  # a kernel, compiler or driver may fail in any way: that is what is asked
            problem = (
                problem or f"{name}: {type(raised).__name__}: {str(raised).strip().partition(chr(10))[0]}"
            )
            continue
        if not error <= bound:  # nor if it is NaN
            problem = (
                problem or f"{name}: relative error {error:.1e} against the reference, bound {bound:.0e}"
            )
    seconds = time.perf_counter() - start
    return SelfTest(backend=backend, device=device, errors=errors, problem=problem, seconds=seconds)


def _worst_error(backend: str, device: str, dtype: torch.dtype) -> float:
    """Of y and all gradients, for an image of more pixels than a chunk that is not square."""
    routes = PATTERNS["cross2d"]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    (height, width), channels, rank, state, K = (6, 13), 24, 3, 2, len(routes)
    values = [
        draw(1, height, width, channels, dtype=dtype),
        draw(1, height, width, K * (rank + 2 * state), dtype=dtype),
        draw(K, channels, rank),
        draw(K, channels),
        -draw(K, channels, state).exp(),
        draw(K, channels),
    ]
    grad = draw(1, height, width, channels, dtype=dtype)

    def run(scan, device: str, exact: bool) -> list[Tensor]:
        inputs = [(v.double() if exact else v).to(device).requires_grad_() for v in values]
        y = scan(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, grad.to(device, y.dtype))]

    expected = run(lambda *inputs: scan2d_reference(*inputs, routes=routes), "cpu", exact=True)
    found = run(lambda *inputs: scan2d(*inputs, routes=routes, backend=backend), device, exact=False)
    pairs = zip(found, expected, strict=True)
    return max(float((f.cpu().double() - e).norm() / e.norm()) for f, e in pairs)
