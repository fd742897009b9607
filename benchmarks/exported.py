"""Exported networks beside each other, in onnxruntime and in OpenVINO.

    python benchmarks/exported.py [--threads 2] [--rounds 9] [--batch 1] [--only ...] [--models ...]

Every network, timm's too, is written and proven by `ganglion.export_model`, of one size, 224, and float32. Then all of
them run in turn in one process; the figures are medians of the ratios of the rounds, as the speed of shared machines
changes from second to second. `onnxruntime-native` is onnxruntime with this library's kernels for the scan.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch

import ganglion
from benchmarks._networks import build, paired_ratio, settings
from ganglion.analysis.timing import inference, seconds_in_turn
from ganglion.export import onnxruntime_library

MODELS = ("swin_tiny_patch4_window7_224", "convnext_tiny", "vmamba_tiny_s1l8", "sparx_mamba_tiny")
SUFFIXES = {"onnxruntime": ".onnx", "onnxruntime-native": ".onnx", "openvino": ".xml"}


def onnxruntime_step(file: Path, x: torch.Tensor, *, native: bool = False) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if native:
        options.register_custom_ops_library(str(onnxruntime_library()))
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {"images": x.numpy()}
    return lambda: session.run(None, feed)


def openvino_step(file: Path, x: torch.Tensor) -> Callable[[], object]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    images = x.numpy()
    return lambda: compiled(images)


STEPS = {
    "onnxruntime": onnxruntime_step,
    "onnxruntime-native": functools.partial(onnxruntime_step, native=True),
    "openvino": openvino_step,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="the first one is the reference")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x = torch.randn(args.batch, 3, 224, 224)
    networks = {name: build(name, torch.float32, train=False) for name in args.models}
    with tempfile.TemporaryDirectory() as folder:
        for runtime in args.only:
            steps: dict[str, Callable[[], object]] = {}
            for name, network in networks.items():
                file = Path(folder) / (name + SUFFIXES[runtime])
                report = ganglion.export_model(
                    network, file, size=224, dynamic=("batch",), native=runtime == "onnxruntime-native"
                )
                error, seconds = report["max_relative_error"], report["seconds"]
                print(
                    f"{file.name}: {report['nodes']} nodes, {report['megabytes']:.0f} MB, made in {seconds:.0f} s, "
                    f"error {error:.0e} ({report['runtime']})",
                    flush=True,
                )
                steps[name] = STEPS[runtime](file, x)
                steps[f"{name} (eager)"] = lambda network=network: inference(network, x)
            times = seconds_in_turn(steps, args.rounds)
            first = args.models[0]
            print(f"\n| batch {args.batch}, {runtime} | ms | speed over {first} | over itself, eager |")
            print("|---|---|---|---|")
            for name in args.models:
                speed = paired_ratio(times[first], times[name])
                eager = paired_ratio(times[f"{name} (eager)"], times[name])
                print(
                    f"| {name} | {1e3 * statistics.median(times[name]):.0f} "
                    f"| {speed[0]:.2f} ({speed[1]:.2f} to {speed[2]:.2f}) | {eager[0]:.2f} |",
                    flush=True,
                )
            print()
    print(settings(batch=args.batch, rounds=args.rounds))


if __name__ == "__main__":
    main()
