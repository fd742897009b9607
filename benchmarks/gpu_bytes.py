"""Bytes that the Triton kernels move, counted from their loads and stores; no GPU is needed.

    python benchmarks/gpu_bytes.py

Two counts of the same kernels:

* requested: every load and store that is executed. tests/ops/triton_interpreted.py runs the kernels in Triton's
  interpreter and demands that every one of these numbers is met to the byte.
* once: every byte that a launch touches, once: what device memory has to deliver at least. A byte is requested more
  than once because every route reads x, every block of channels reads the projections, and routes add up in place.
  The second-level cache has the rest to serve; how much of it does is for a profiler to say.

The published sequence is counted at one read or write of each of its tensors in each of its steps.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from ganglion.ops.routes import CHUNK
from ganglion.ops.triton.launch import Tiling, tiling

FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A call of scan2d with D. itemsize: bytes of an element of x."""

    batch: int
    height: int
    width: int
    channels: int
    n_routes: int = 4
    dt_rank: int
    d_state: int = 1
    itemsize: int = 2

    @property
    def length(self) -> int:
        return self.height * self.width

    @property
    def projections(self) -> int:
        """Per pixel and route."""
        return self.dt_rank + 2 * self.d_state

    @property
    def padded_rank(self) -> int:
        """As the backward pass stores the gradient of dt_weight."""
        return -(-self.dt_rank // 16) * 16

    @property
    def x_bytes(self) -> int:
        return self.batch * self.length * self.channels * self.itemsize

    @property
    def proj_bytes(self) -> int:
        return self.batch * self.length * self.n_routes * self.projections * self.itemsize


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Bytes read and written."""

    read: int
    written: int

    @property
    def total(self) -> int:
        return self.read + self.written

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(read=self.read + other.read, written=self.written + other.written)


def default_tiling(shape: Shape, *, backward: bool, processors: int = 132) -> Tiling:
    """The tiling that a call of this shape gets on a device of `processors` multiprocessors."""
    return tiling(
        batch=shape.batch,
        length=shape.length,
        channels=shape.channels,
        n_routes=shape.n_routes,
        dt_rank=shape.dt_rank,
        dtype=torch.float32 if shape.itemsize == FLOAT else torch.float16,
        processors=processors,
        backward=backward,
    )


def requested(shape: Shape, how: Tiling, *, backward: bool) -> Bytes:
    """Bytes of every load and store of the kernels of one call, without `merging`."""
    B, K, L, D = shape.batch, shape.n_routes, shape.length, shape.channels
    R, N, item = shape.dt_rank, shape.d_state, shape.itemsize
    blocks = -(-D // how.block_d)
    chunks = -(-L // CHUNK)
    segments = -(-chunks // how.segment_chunks)
    tiles = sum(-(-min(CHUNK, L - c * CHUNK) // how.steps) for c in range(chunks))

    def step(columns: int, maps: int) -> int:
        """Reads per step of one walk: columns of the projections, by every block of channels, and maps like x."""
        return (columns * blocks + maps * D) * item

    def rows(n: int) -> int:
        """Reads of n rows of parameters per tile."""
        return tiles * n * D * FLOAT

    # Per walk, that is per image and route.
    weight = segments * D * R * FLOAT
    state = N * D * FLOAT
    read = state * segments * (segments - 1)  # states that enter segments
    if backward:
        swept = tiles - chunks  # tiles that are walked forwards once more
        read += weight + rows(N + 2)  # bias, A, D
        again = R > 16  # some columns are fetched once more
        read += L * step(R + 4 * N + again * (R + 2 * N), 2) + chunks * state
        read += swept * (how.steps * step(R + 2 * N, 1) + (N + 1) * D * FLOAT)
        written = L * (D * item + blocks * (R + 2 * N) * item)
        written += segments * (D * (shape.padded_rank + 2) * FLOAT + state)
    else:
        read += weight + rows(N + 2)  # bias, A, D
        # Each tile is fetched while the one before it is worked on, the last of a segment once more.
        steps = [min(how.segment_chunks * CHUNK, L - s * how.segment_chunks * CHUNK) for s in range(segments)]
        twice = sum(n - (n - 1) // how.steps * how.steps for n in steps)
        read += L * step(R + 2 * N, 1) + twice * step(R, 1)
        written = L * D * item + chunks * state
    if segments > 1:
        read += weight + rows(N + 1) + L * step(R + 2 * N, 1)
        written += 2 * segments * state
    in_place = (K - K // how.walks) * L * D * item  # per image
    return Bytes(read=B * (K * read + in_place), written=B * K * written)


def merging(shape: Shape, how: Tiling, *, backward: bool) -> Bytes:
    """The sum of the partial maps and, in the backward pass, of what blocks of channels found for the projections."""
    groups = shape.n_routes // how.walks
    x, proj = shape.x_bytes, shape.proj_bytes
    merged = Bytes(read=groups * x, written=x) if groups > 1 else Bytes(read=0, written=0)
    if backward:
        blocks = -(-shape.channels // how.block_d)
        partial = shape.batch * shape.length * shape.n_routes * shape.projections * shape.itemsize
        merged += Bytes(read=blocks * partial, written=proj)
    return merged


def once(shape: Shape, how: Tiling, *, backward: bool) -> Bytes:
    """Every byte that each launch of one call touches, counted once, without `merging`."""
    x, proj = shape.x_bytes, shape.proj_bytes
    K, R, N = shape.n_routes, shape.dt_rank, shape.d_state
    groups = K // how.walks
    chunks = -(-shape.length // CHUNK)
    segments = -(-chunks // how.segment_chunks)
    parameters = K * shape.channels * (R + N + 2) * FLOAT
    states = shape.batch * K * N * shape.channels * FLOAT
    if backward:
        blocks = -(-shape.channels // how.block_d)
        partial = blocks * shape.batch * shape.length * K * shape.projections * shape.itemsize
        read = 2 * x + proj + parameters + chunks * states
        gradients = K * shape.channels * (shape.padded_rank + N + 2) * FLOAT
        written = groups * x + partial + shape.batch * segments * gradients
    else:
        read = x + proj + parameters
        written = groups * x + chunks * states
    if segments > 1:
        ends = 2 * segments * states
        read += x + proj + parameters + ends
        written += ends
    return Bytes(read=read, written=written)


def projection(shape: Shape) -> Bytes:
    """The matrix product before the scan, which makes the projections of all routes from x."""
    return Bytes(read=shape.x_bytes, written=shape.proj_bytes)


def published(shape: Shape) -> Bytes:
    """The forward pass of the published sequence: cross scan, projections, step sizes, scan in float32, merge."""
    x, K = shape.x_bytes, shape.n_routes
    x_float = shape.batch * shape.length * shape.channels * FLOAT
    per_column = shape.batch * shape.length * K * shape.itemsize
    low, states = per_column * shape.dt_rank, per_column * 2 * shape.d_state
    steps = (
        Bytes(read=x, written=K * x),  # cross scan: xs
        Bytes(read=K * x, written=low + states),  # projections
        Bytes(read=low, written=K * x),  # step sizes: dts
        Bytes(read=2 * K * x + states, written=K * x_float),  # scan: ys
        Bytes(read=K * x_float, written=x_float),  # merge
    )
    return sum(steps[1:], steps[0])


def ratios(shape: Shape, how: Tiling | None = None) -> tuple[float, float]:
    """Bytes of our forward pass over those of the published one, both with the projections: (once, requested)."""
    how = how or default_tiling(shape, backward=False)
    rest = merging(shape, how, backward=False) + projection(shape)
    reference = published(shape).total
    return (
        (once(shape, how, backward=False) + rest).total / reference,
        (requested(shape, how, backward=False) + rest).total / reference,
    )


#: (channels, dt_rank, side) of the four stages at 224 pixels.
STAGES = {
    "vmamba_tiny_s1l8": ((96, 6, 56), (192, 12, 28), (384, 24, 14), (768, 48, 7)),
    "vmamba_tiny_s2l5": ((192, 6, 56), (384, 12, 28), (768, 24, 14), (1536, 48, 7)),
    "sparx_mamba_tiny": ((192, 6, 56), (384, 12, 28), (640, 20, 14), (1024, 32, 7)),
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print("| network | stage | published, MB | once, MB | ratio | requested, MB | ratio | tiling |")
    print("|" + " --- |" * 8)
    for network, stages in STAGES.items():
        for i, (channels, rank, side) in enumerate(stages):
            shape = Shape(batch=128, height=side, width=side, channels=channels, dt_rank=rank)
            how = default_tiling(shape, backward=False)
            reference = published(shape).total / 1e6
            least, most = ratios(shape)
            print(
                f"| {network} | {i + 1} | {reference:.0f} | {least * reference:.0f} | {least:.2f} "
                f"| {most * reference:.0f} | {most:.2f} | {how.walks} routes a program |"
            )


if __name__ == "__main__":
    main()
