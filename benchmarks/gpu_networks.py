"""Networks on a GPU, in turn in one process. Used by gpu.py."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ganglion.analysis.timing import Step, inference, peak_memory, seconds_in_turn, training, wait

OURS = ("vmamba_tiny_s1l8", "vmamba_tiny_s2l5", "sparx_mamba_tiny")
LARGER = ("vmamba_small_s2l15", "vmamba_base_s2l15", "sparx_mamba_small", "sparx_mamba_base")
THEIRS = ("swin_tiny_patch4_window7_224", "convnext_tiny", "mambaout_tiny")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Networks that are measured in turn."""

    names: tuple[str, ...]
    batch: int
    pixels: int
    train: bool
    half: bool = False  # weights in float16 instead of autocast
    backend: str = "auto"

    @property
    def title(self) -> str:
        parts = ["training step" if self.train else "inference", "eager"]
        parts += [f"{self.pixels} px", f"batch {self.batch}"]
        parts += ["half weights"] * self.half + ["unfused scan"] * (self.backend == "torch")
        return ", ".join(parts)


def groups() -> Iterator[Group]:
    """What matters most first: a run that is late leaves out the end."""
    tiny = (*OURS, *THEIRS)
    yield Group(names=tiny, batch=128, pixels=224, train=False)
    yield Group(names=tiny, batch=128, pixels=224, train=True)
    yield Group(names=tiny, batch=128, pixels=224, train=False, half=True)
    for pixels, batch in ((512, 32), (1024, 8)):
        yield Group(names=tiny, batch=batch, pixels=pixels, train=False)
    yield Group(names=(OURS[0],), batch=16, pixels=224, train=False)
    yield Group(names=(OURS[0],), batch=16, pixels=224, train=False, backend="torch")
    yield Group(names=LARGER, batch=128, pixels=224, train=False)
    for pixels, batch in ((384, 64), (768, 16)):
        yield Group(names=(*OURS, *LARGER, *THEIRS), batch=batch, pixels=pixels, train=False)


def rehearsal() -> Iterator[Group]:
    """The same code on small shapes and a CPU."""
    for train in (False, True):
        yield Group(names=("vmamba_tiny_s1l8", "convnext_atto"), batch=1, pixels=32, train=train)


@contextlib.contextmanager
def scan_backend(name: str):
    """The backend of every scan inside: GANGLION_BACKEND for the time being."""
    before = os.environ.get("GANGLION_BACKEND")
    os.environ["GANGLION_BACKEND"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["GANGLION_BACKEND"]
        else:
            os.environ["GANGLION_BACKEND"] = before


def build(name: str, group: Group, device: str) -> nn.Module:
    """Channels-last, random weights in float32, which autocast turns into float16, or in float16 at once."""
    import timm

    import ganglion  # noqa: F401, registers our networks

    torch.manual_seed(0)
    sized = {"img_size": group.pixels} if name.startswith("swin") else {}
    model = timm.create_model(name, num_classes=1000, **sized)
    model = model.to(device, memory_format=torch.channels_last).train(group.train)
    return model.half() if group.half else model


def step_of(model: nn.Module, group: Group, device: str, run: Callable | None = None) -> Step:
    """One inference or training step under autocast, as `ganglion bench` has it.

    run: what computes the model's output, if not the model itself (the compiled one).
    """
    x = torch.randn(group.batch, 3, group.pixels, group.pixels, device=device)
    x = x.contiguous(memory_format=torch.channels_last).to(torch.float16 if group.half else torch.float32)
    if group.train:
        return partial(training, model, x, amp=not group.half, run=run)
    return partial(inference, model if run is None else run, x, amp=not group.half)


def measure(group: Group, device: str, remaining: Callable[[], float], rounds: int = 7) -> Iterator[dict]:
    """images/s and peak memory of every network of a group, rounds in turn. `remaining`: seconds left."""
    gpu = device != "cpu"
    steps: dict[str, Step] = {}
    peaks: dict[str, int] = {}
    longest = 0.0
    with scan_backend(group.backend):
        for name in group.names:
            if remaining() < max(20.0, 1.5 * longest):
                yield {"group": group.title, "model": name, "said": "left out: no time"}
                continue
            began = time.perf_counter()
            try:
                if gpu:
                    torch.cuda.empty_cache()
                    held = torch.cuda.memory_allocated()
                step = step_of(build(name, group, device), group, device)
                for _ in range(3):
                    step()
                wait(device)
                if gpu:
                    peaks[name] = peak_memory(step, device) - held
            except Exception as problem:  # one network that fails is a row, not the end
                yield {
                    "group": group.title,
                    "model": name,
                    "said": f"{type(problem).__name__}: {problem}"[:300],
                }
                continue
            steps[name] = step
            longest = max(longest, time.perf_counter() - began)
        taken = seconds_in_turn(steps, rounds, device, warmup=0, repeats=3 if gpu else 1)
    for name, times in taken.items():
        row = {"group": group.title, "model": name, "images_per_s": group.batch / statistics.median(times)}
        if name in peaks:
            row["peak_gb"] = peaks[name] / 1e9
        for other in THEIRS:
            if other in taken and other != name:
                row[f"over_{other}"] = statistics.median(b / a for a, b in zip(times, taken[other]))
        yield row
