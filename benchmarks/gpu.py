"""Everything that has to be measured on a GPU, in one command and under nine minutes; no network is needed.

    python benchmarks/gpu.py [--out gpu_results] [--part all] [--minutes 8.5]

First forward and every gradient are compared with float64, in parallel processes: where that fails, no speed is
printed. Then come, in this order and each by itself as `--part`: `op`, the operator; `networks`, eager, against timm's;
`host`, one image; `profile`, the kernels of a step; `compiled`, networks compiled in parallel processes and timed in
turn; and on request `tilings`, other ways to cut the operator's work. What there is no time for is left out and said.
Results go to results.json and results.md in the folder `--out`.

Runs from a checkout on PYTHONPATH. Without timm only the operator is measured. `--rehearse` runs the whole program on
a CPU with tiny shapes, to see that it is complete; its times mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import sys
import time
import types
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
HAS_TIMM = importlib.util.find_spec("timm") is not None
if not HAS_TIMM:
    # The package needs timm, its operators do not: let `ganglion.ops` be imported alone.
    package = types.ModuleType("ganglion")
    package.__path__ = [str(ROOT / "ganglion")]
    sys.modules["ganglion"] = package

import gpu_op

PARTS = ("op", "networks", "host", "profile", "compiled")

PROTOCOL = (
    "Operator: float16, cross2d, medians of 15 samples of CUDA-graph replays, inputs warm in the second-level cache "
    "where they fit. Networks: random weights, channels-last, autocast to float16, TF32 allowed for what stays in "
    "float32, medians of 7 rounds of 3 steps with all networks of a group in turn in one process; training steps are "
    "forward, cross entropy and backward without an optimizer; peak memory is above what other networks hold. Speeds "
    "relative to another network are medians of the rounds' ratios."
)


def describe(device: str) -> dict[str, str]:
    """What was measured on and with."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    for name in ("triton", "timm"):
        if importlib.util.find_spec(name) is not None:
            versions[name] = importlib.import_module(name).__version__
    gpu = torch.cuda.get_device_name() if device != "cpu" else "CPU rehearsal: the times mean nothing"
    runtime = torch.version.hip or torch.version.cuda or ""
    return {
        "device": gpu,
        "runtime": runtime,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        **versions,
    }


def table(rows: list[dict]) -> str:
    """Rows as Markdown, with the union of their keys as columns."""
    if not rows:
        return "nothing"
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def cell(value: object) -> str:
        if isinstance(value, bool) or value is None or isinstance(value, str):
            return {True: "yes", False: "NO", None: ""}.get(value, value)
        return f"{value:.3g}" if abs(value) < 1e4 else f"{value:.3e}"

    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


class Report:
    """What is found, printed and written as it comes, so that a run that is cut off leaves its results."""

    def __init__(self, folder: Path, about: dict[str, str]):
        self.folder = folder
        self.found: dict[str, object] = {"about": about, "protocol": PROTOCOL}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, title: str, rows: list[dict]) -> None:
        self.found.setdefault(title, []).extend(rows)
        print(f"\n## {title}\n\n{table(rows)}", flush=True)
        (self.folder / "results.json").write_text(json.dumps(self.found, indent=1, default=str))
        parts = ["# GPU results", ", ".join(f"{k} {v}" for k, v in self.found["about"].items()), PROTOCOL]
        parts += [f"## {k}\n\n{table(v)}" for k, v in self.found.items() if isinstance(v, list)]
        (self.folder / "results.md").write_text("\n\n".join(parts) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_results"))
    parser.add_argument("--part", default=["all"], nargs="+", choices=("all", "check", *PARTS, "tilings"))
    parser.add_argument("--minutes", type=float, default=8.5, help="begin nothing that would end later")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on a CPU")
    args = parser.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("no GPU: torch.cuda.is_available() is False; --rehearse runs the program on a CPU")
    end = time.perf_counter() + 60 * args.minutes

    def remaining() -> float:
        return end - time.perf_counter()

    parts = PARTS if "all" in args.part else args.part
    device, backend = ("cpu", "torch") if args.rehearse else ("cuda", "triton")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    report = Report(args.out, describe(device))
    print(", ".join(f"{k} {v}" for k, v in report.found["about"].items()))

    processes = 1 if args.rehearse else min(10, os.cpu_count() or 1)
    right = list(gpu_op.check(device, backend, processes))
    report.add("Accuracy: relative RMS error against float64", right)
    behaviour = list(gpu_op.check_behaviour(device, backend))
    report.add("Behaviour", behaviour)
    if not all(row["passed"] for row in (*right, *behaviour)):
        print("\nThe kernels are not right: no speed is measured.", file=sys.stderr)
        return 1
    if "op" in parts:
        limits = gpu_op.ceilings(device)
        report.add("What the device allows", [limits])
        late = lambda: remaining() < 30  # noqa: E731
        report.add("The operator", list(gpu_op.measure(device, backend, limits, args.rehearse, late)))
    if "tilings" in parts and not args.rehearse:
        report.add("Tilings", list(gpu_op.tilings(device)))
    if set(parts) <= {"check", "op", "tilings"}:
        return 0
    if not HAS_TIMM:
        print("\nNetworks are left out: the package timm is not installed.", file=sys.stderr)
        return 0
    import gpu_compiled
    import gpu_networks
    import gpu_profile

    if "networks" in parts:
        # Compiling comes last, and needs some three minutes.
        spare = 220 if "compiled" in parts and not args.rehearse else 0
        for group in gpu_networks.rehearsal() if args.rehearse else gpu_networks.groups():
            report.add("Networks", list(gpu_networks.measure(group, device, lambda: remaining() - spare)))
    if "host" in parts:
        report.add("One image, eager", list(gpu_profile.one_image(device)))
    if "profile" in parts and not args.rehearse:
        for title, rows in gpu_profile.profiles(device):
            report.add(title, rows)
    if "compiled" in parts:
        jobs = [gpu_compiled.Job(name="convnext_atto", batch=1)] if args.rehearse else gpu_compiled.jobs()
        left = 250 if args.rehearse else remaining() - 30
        report.add("Networks, compiled", list(gpu_compiled.measure(device, jobs, left)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
