"""The operator on a GPU: is it right, how fast is it, how far from what the device allows. Used by gpu.py."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace

import torch
from gpu_bytes import STAGES, Shape, default_tiling, merging, once, requested
from torch import Tensor

from ganglion.ops import Route, pattern, scan2d, scan2d_reference

#: Relative root-mean-square error against float64, forward and every gradient.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
NAMES = ("y", "x", "proj", "dt_weight", "dt_bias", "A", "D")
LINES = (Route(restart=True), Route(transpose=True, flip_rows=True, restart=True))
#: Results of the special-function unit that one step of one channel needs: softplus and decay, and in the backward
#: pass the derivative of softplus. The logarithm is a polynomial.
SPECIAL = {"forward": 2, "backward": 3}


def inputs(shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """Random arguments of scan2d, in their order."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    B, H, W, D, K = shape.batch, shape.height, shape.width, shape.channels, shape.n_routes
    if B * H * W * D > 2**22:  # drawn on the device where that takes long
        generator = torch.Generator(device).manual_seed(seed)
        x, proj = (
            torch.randn(size, generator=generator, device=device, dtype=dtype)
            for size in ((B, H, W, D), (B, H, W, K * shape.projections))
        )
        generator = torch.Generator().manual_seed(seed)
    else:
        x, proj = normal(B, H, W, D), normal(B, H, W, K * shape.projections)
    parameters = (
        normal(K, D, shape.dt_rank) * shape.dt_rank**-0.5,
        normal(K, D) - 1,
        -normal(K, D, shape.d_state).exp(),
        normal(K, D),
    )
    return [x.to(device, dtype), proj.to(device, dtype), *(p.to(device) for p in parameters)]


def error(found: Tensor, exact: Tensor) -> float:
    """Relative root-mean-square error; infinite unless every value is finite."""
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    value = float((found - exact).norm() / exact.norm().clamp(min=1e-30))
    return value if value == value else float("inf")


def _case(
    shape: Shape, dtype: torch.dtype, routes: tuple[Route, ...], device: str, backend: str, oracle
) -> dict:
    tensors = inputs(shape, dtype, device)
    cotangent = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)

    def run(function, arguments, gradient) -> list[Tensor]:
        arguments = [t.detach().requires_grad_() for t in arguments]
        y = function(*arguments)
        return [y, *torch.autograd.grad(y, arguments, gradient)]

    found = run(lambda *a: scan2d(*a, routes=routes, backend=backend), tensors, cotangent)
    place = device if oracle is not scan2d_reference else "cpu"
    exact = [t.to(place).double() for t in tensors]
    expected = run(lambda *a: oracle(*a, routes=routes), exact, cotangent.to(place).double())
    errors = {name: error(f, e) for name, f, e in zip(NAMES, found, expected)}
    worst = max(errors, key=errors.get)
    return {
        "worst": worst,
        "error": errors[worst],
        "bound": BOUNDS[dtype],
        "passed": errors[worst] <= BOUNDS[dtype],
    }


def cases(device: str) -> list[tuple[str, Shape, str]]:
    """(name, shape, routes) of what is checked; the batch decides which parallel form a call takes."""
    small = Shape(batch=1, height=13, width=9, channels=40, dt_rank=3)
    many = replace(small, batch=1 if device == "cpu" else 400)
    found = [
        ("stage 3, 128 images", Shape(batch=128, height=14, width=14, channels=384, dt_rank=24), "cross2d"),
        ("stage 1, 64 images", Shape(batch=64, height=56, width=56, channels=96, dt_rank=6), "cross2d"),
        ("stage 4, 128 images", Shape(batch=128, height=7, width=7, channels=768, dt_rank=48), "cross2d"),
        ("1024 px, one image", Shape(batch=1, height=256, width=256, channels=96, dt_rank=6), "cross2d"),
        ("stage 1, one image", Shape(batch=1, height=56, width=56, channels=96, dt_rank=6), "cross2d"),
        ("chunked, d_state 16", replace(small, d_state=16, n_routes=1), "ssm"),
        ("chunked, d_state 4", replace(small, d_state=4), "cross2d"),
        ("chunked, rank 24", replace(small, dt_rank=24, channels=64), "rot2d"),
        ("sequential", many, "cross2d"),
        ("sequential, restart", replace(many, n_routes=2), "lines"),
        ("chunked", small, "cross2d"),
        ("chunked, restart", replace(small, n_routes=2), "lines"),
    ]
    return found[-2:] if device == "cpu" else found


def check_case(case: tuple[str, Shape, str], dtype: torch.dtype, device: str, backend: str) -> dict:
    """One case in one dtype: small shapes against the definition, larger ones against the vectorised backend in
    float64. What a kernel raises is a result, too."""
    name, shape, route_name = case
    row = {"case": name, "dtype": str(dtype).removeprefix("torch.")}
    routes = LINES if route_name == "lines" else pattern(route_name)

    def vectorised(*arguments, routes):
        return scan2d(*arguments, routes=routes, backend="torch")

    oracle = scan2d_reference if shape.batch * shape.length < 1000 else vectorised
    try:
        return row | _case(shape, dtype, routes, device, backend, oracle)
    except Exception as problem:
        return row | {"passed": False, "said": f"{type(problem).__name__}: {problem}"[:300]}


def check(device: str, backend: str, processes: int = 1) -> Iterator[dict]:
    """Forward and every gradient against float64, the slowest cases first, in `processes` at a time."""
    jobs = [(case, dtype) for case in cases(device) for dtype in BOUNDS]
    if processes == 1:
        yield from (check_case(case, dtype, device, backend) for case, dtype in jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(check_case, case, dtype, device, backend) for case, dtype in jobs]
        yield from (done.result() for done in as_completed(running))


def check_behaviour(device: str, backend: str) -> Iterator[dict]:
    """Determinism, CUDA graphs, torch.compile, and devices that are not the current one."""
    shape = Shape(batch=2, height=28, width=20, channels=96, dt_rank=6)
    routes = pattern("cross2d")
    tensors = [t.requires_grad_() for t in inputs(shape, torch.float16, device)]

    def step(*arguments: Tensor) -> list[Tensor]:
        y = scan2d(*arguments, routes=routes, backend=backend)
        return [y, *torch.autograd.grad(y.float().square().sum(), arguments)]

    def outcome(name: str, same: Callable[[], bool]) -> dict:
        try:
            passed, said = same(), ""
        except Exception as problem:  # whatever goes wrong is a result here
            passed, said = False, f"{type(problem).__name__}: {problem}"[:300]
        return {"case": name, "passed": passed, "said": said}

    def equal(a: list[Tensor], b: list[Tensor]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b))

    first = step(*tensors)
    yield outcome("two runs are equal bit for bit", lambda: equal(first, step(*tensors)))
    call = torch.compile(lambda *a: scan2d(*a, routes=routes, backend=backend) * 2, fullgraph=True)
    yield outcome("torch.compile(fullgraph=True)", lambda: error(call(*tensors), first[0] * 2) < 1e-3)
    if device == "cpu":
        return

    def captured() -> bool:
        with torch.no_grad():
            run = graph_of(lambda: scan2d(*tensors, routes=routes, backend=backend))
        run()
        torch.cuda.synchronize()
        return torch.equal(run.result, first[0])

    yield outcome("CUDA graph", captured)

    def far() -> bool:
        """The last image of a batch of more than 2^31 elements, against the same image alone."""
        big = Shape(batch=1400, height=128, width=128, channels=96, dt_rank=6)
        arguments = inputs(big, torch.float16, device)
        with torch.no_grad():
            all_of_them = scan2d(*arguments, routes=routes, backend=backend)[-1:].clone()
            alone = scan2d(*(t[-1:] for t in arguments[:2]), *arguments[2:], routes=routes, backend=backend)
        return error(all_of_them, alone) < BOUNDS[torch.float16]

    if torch.cuda.mem_get_info()[0] > 30e9:
        yield outcome("more than 2^31 elements", far)
    if torch.cuda.device_count() > 1:
        yield outcome("another device", lambda: equal([t.cpu() for t in step(*(t.to("cuda:1") for t in tensors))],
                                                      [t.cpu() for t in first]))  # fmt: skip


def graph_of(call: Callable[[], object]) -> Callable[[], None]:
    """A function that replays one call as a CUDA graph; its attribute `result` is what the call returned."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> None:
        graph.replay()

    replay.result = result
    return replay


def seconds(call: Callable[[], object], device: str, samples: int = 15) -> float:
    """Median time of one call; on a GPU by events around enough calls to fill two milliseconds."""
    if device == "cpu":
        call()
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def measure(repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats

    measure(3)
    repeats = max(1, round(2e-3 / max(measure(3), 1e-6)))
    return statistics.median(measure(repeats) for _ in range(samples))


def ceilings(device: str) -> dict[str, float]:
    """What the device allows: bytes/s of a copy, read and written, and special-function results/s."""
    source = torch.empty(2**16 if device == "cpu" else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"copy_bytes_per_s": 2 * source.numel() / seconds(lambda: target.copy_(source), device)}
    if device != "cpu":
        from gpu_exp2 import ROUNDS, THREADS, exp2_kernel

        out = torch.empty(THREADS * 4096, device=device)
        taken = seconds(lambda: exp2_kernel[(4096,)](out, ROUNDS=ROUNDS, SIZE=THREADS, num_warps=4), device)
        found["special_results_per_s"] = out.numel() * ROUNDS / taken
    return found


def shapes(rehearse: bool) -> Iterator[tuple[str, Shape]]:
    """Stages of VMamba-T at batch 1, 16 and 128, and at 512 and 1024 pixels."""
    if rehearse:
        yield "rehearsal", Shape(batch=1, height=5, width=7, channels=16, dt_rank=2)
        return
    for pixels, batches in ((224, (128, 16, 1)), (512, (16,)), (1024, (4,))):
        for batch in batches:
            for stage, (channels, rank, side) in enumerate(STAGES["vmamba_tiny_s1l8"]):
                side = -(-side * pixels // 224)
                shape = Shape(batch=batch, height=side, width=side, channels=channels, dt_rank=rank)
                yield f"stage {stage + 1}, {pixels} px, batch {batch}", shape


def measure(
    device: str, backend: str, limits: dict[str, float], rehearse: bool, late: Callable[[], bool]
) -> Iterator[dict]:
    """Time, bytes/s and fraction of the floors, forward and backward, float16. Calls replay as CUDA graphs."""
    routes = [route.code for route in pattern("cross2d")]
    scan, gradient = torch.ops.ganglion.scan2d, torch.ops.ganglion.scan2d_backward
    for name, shape in shapes(rehearse):
        if late():
            return
        tensors = inputs(shape, torch.float16, device)
        y, carry = scan(*tensors, routes, backend)
        calls = {
            "forward": lambda tensors=tensors: scan(*tensors, routes, backend),
            "backward": lambda tensors=tensors, y=y, carry=carry: gradient(
                y, *tensors, carry, routes, backend
            ),
        }
        for way, call in calls.items():
            taken = seconds(graph_of(call) if device != "cpu" else call, device)
            row = {"shape": name, "pass": way, "ms": taken * 1e3}
            how = default_tiling(shape, backward=way == "backward", processors=_processors(device))
            rest = merging(shape, how, backward=way == "backward")
            least = (once(shape, how, backward=way == "backward") + rest).total
            most = (requested(shape, how, backward=way == "backward") + rest).total
            results = SPECIAL[way] * shape.batch * shape.n_routes * shape.channels * shape.length
            row |= {
                "tiling": f"{how.walks} routes, {how.segment_chunks} chunks",
                "bytes_once": least,
                "bytes_requested": most,
            }
            if "special_results_per_s" in limits:
                floors = {
                    "memory": least / limits["copy_bytes_per_s"],
                    "special": results / limits["special_results_per_s"],
                }
                larger = max(floors, key=floors.get)
                row |= {"floor_ms": floors[larger] * 1e3, "floor": larger, "share": floors[larger] / taken}
            row["bytes_per_s"] = least / taken
            if way == "forward" and "batch 16" in name and "224" in name:
                row["unfused_ms"] = (
                    seconds(lambda tensors=tensors: scan(*tensors, routes, "torch"), device, 3) * 1e3
                )
                row["speed_up"] = row["unfused_ms"] / row["ms"]
            yield row


def tilings(device: str) -> Iterator[dict]:
    """Other ways to cut the work of stage 1 and stage 3 at batch 128, for whoever tunes `launch.tiling`."""
    from ganglion.ops.triton import launch

    routes = [route.code for route in pattern("cross2d")]
    for stage in (0, 2):
        channels, rank, side = STAGES["vmamba_tiny_s1l8"][stage]
        shape = Shape(batch=128, height=side, width=side, channels=channels, dt_rank=rank)
        tensors = inputs(shape, torch.float16, device)
        carry = launch.forward(*tensors, routes)[1]
        base = default_tiling(shape, backward=False)
        for walks in (4, 2, 1):
            for block_d in (16, 32, 64):
                for steps in (16, 32):
                    how = replace(base, walks=walks, block_d=block_d, steps=steps)
                    row = {"stage": stage + 1, "walks": walks, "block_d": block_d, "steps": steps}
                    row["forward_ms"] = (
                        seconds(lambda how=how, t=tensors: launch.forward(*t, routes, how), device, 5) * 1e3
                    )
                    if steps == 16 and walks == 1:
                        back = lambda how=how, t=tensors, c=carry: launch.backward(t[0], *t, c, routes, how)  # noqa: E731
                        row["backward_ms"] = seconds(back, device, 5) * 1e3
                    yield row


def _processors(device: str) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device != "cpu" else 132
