"""Compiled networks on a GPU: compiled in parallel processes, since that takes minutes, then timed in turn.

Used by gpu.py.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from gpu_networks import OURS, THEIRS, Group, build, step_of

from ganglion.analysis.timing import peak_memory, seconds, wait


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network to be compiled, and how."""

    name: str
    train: bool = False
    batch: int = 128
    mode: str = "default"  # of torch.compile

    @property
    def group(self) -> Group:
        return Group(names=(self.name,), batch=self.batch, pixels=224, train=self.train)

    @property
    def row(self) -> dict:
        step = "training step" if self.train else "inference"
        return {"model": self.name, "step": step, "batch": self.batch, "mode": self.mode}


def jobs() -> list[Job]:
    """The slowest to compile first."""
    tiny = (OURS[2], OURS[0], *THEIRS)
    return [
        *(Job(name=name, train=True) for name in tiny),
        *(Job(name=name) for name in tiny),
        *(Job(name=name, batch=1, mode="reduce-overhead") for name in tiny),
    ]


def measure(device: str, chosen: list[Job], limit: float, rounds: int = 5) -> Iterator[dict]:
    """Time of every compiled network beside itself in eager mode, and over timm's compiled ones.

    limit: seconds; what is not compiled by then is left out, and said.
    """
    context = multiprocessing.get_context("spawn")
    end = time.perf_counter() + limit
    running = []
    for job in chosen:
        here, there = context.Pipe()
        process = context.Process(target=_worker, args=(there, job, device), daemon=True)
        process.start()
        running.append((job, here, process))
    ready, taken = {}, {}
    while len(ready) < len(running) and time.perf_counter() < end:
        for job, connection, _ in running:
            if job not in ready and connection.poll(0.05):
                ready[job] = connection.recv()
    for job, _, process in running:
        if job not in ready:
            ready[job] = {"said": f"not compiled in {limit:.0f} s"}
            process.kill()
    sound = [(job, connection) for job, connection, _ in running if "said" not in ready[job]]
    for _ in range(rounds):
        for job, connection in sound:
            connection.send("measure")
            if connection.poll(60):
                taken.setdefault(job, []).append(connection.recv())
    for _, _, process in running:
        process.kill()
    for job in chosen:
        row = job.row | ready[job]
        if job in taken:
            row |= {key: statistics.median(times[key] for times in taken[job]) for key in taken[job][0]}
            row["over_eager"] = statistics.median(t["eager_ms"] / t["compiled_ms"] for t in taken[job])
            for name in THEIRS:
                other = Job(name=name, train=job.train, batch=job.batch, mode=job.mode)
                if other in taken and other != job:
                    pairs = zip(taken[job], taken[other])
                    row[f"over_{name}"] = statistics.median(
                        b["compiled_ms"] / a["compiled_ms"] for a, b in pairs
                    )
        yield row


def _worker(connection, job: Job, device: str) -> None:
    """Compiles one network, says what that took, and measures it as often as it is told to."""
    try:
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "3"
        torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        model = build(job.name, job.group, device)
        eager = step_of(model, job.group, device)
        eager()
        start = time.perf_counter()
        step = step_of(model, job.group, device, torch.compile(model, mode=job.mode))
        for _ in range(3):
            step()
        wait(device)
        found = {"compile_s": time.perf_counter() - start}
        if device != "cpu":
            held = torch.cuda.memory_allocated()
            found["peak_gb"] = (peak_memory(step, device) - held) / 1e9
        connection.send(found)
        repeats = 1 if device == "cpu" else 20 if job.batch == 1 else 4
        while connection.recv() == "measure":
            ways = {"compiled_ms": step, "eager_ms": eager}
            taken = {way: seconds(call, device, repeats=repeats) for way, call in ways.items()}
            connection.send({way: 1e3 * each for way, each in taken.items()})
    except Exception as problem:  # one network that fails is a row, not the end
        connection.send({"said": f"{type(problem).__name__}: {problem}"[:500]})
