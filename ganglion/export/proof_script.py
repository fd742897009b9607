"""Run by `proof` in a process of its own, where this library cannot be imported:

    python -I THIS KIND FILE IN OUT LIBRARY

IN (npz): `x0`, `x1` ... are the images of runs; `threads`. OUT (npz): `y0_0`, `y0_1` ... are their results in order;
`seconds`, the shortest time of a run of x0; `runtime`, its name and version. LIBRARY: of custom operators, or empty.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

sys.modules["ganglion"] = None  # type: ignore[assignment]  # an import of it fails from here on

#: From images to what the file computes of them.
Run = Callable[[np.ndarray], Sequence[Any]]


def onnx(file: str, threads: int, library: str) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if library:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x}), f"onnxruntime {onnxruntime.__version__}"


def pt2(file: str, threads: int, library: str) -> tuple[Run, str]:
    import torch

    torch.set_num_threads(threads)
    module = torch.export.load(file).module()

    def run(x):
        with torch.no_grad():
            return [y.numpy() for y in module(torch.from_numpy(x))]

    return run, f"torch {torch.__version__}"


def aoti(file: str, threads: int, library: str) -> tuple[Run, str]:
    import torch

    torch.set_num_threads(threads)
    model = torch._inductor.aoti_load_package(file)

    def run(x):
        with torch.no_grad():
            return [y.numpy() for y in model(torch.from_numpy(x))]

    return run, f"torch {torch.__version__}"


def openvino(file: str, threads: int, library: str) -> tuple[Run, str]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda x: list(compiled(x).values()), f"openvino {openvino.__version__}"


def main(kind: str, file: str, given: str, found: str, library: str) -> None:
    arrays = dict(np.load(given))
    load = {"onnx": onnx, "pt2": pt2, "aoti": aoti, "openvino": openvino}[kind]
    run, runtime = load(file, int(arrays.pop("threads")), library)
    results = {}
    for name, x in arrays.items():
        for i, y in enumerate(run(x)):
            results[f"y{name[1:]}_{i}"] = y
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        run(arrays["x0"])
        seconds.append(time.perf_counter() - start)
    np.savez(found, seconds=min(seconds), runtime=runtime, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
