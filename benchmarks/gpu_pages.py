"""Writes what was measured on GPUs into the documentation: the tables between `<!-- measured -->` marks in docs/gpu.md.

    python benchmarks/gpu_pages.py [--check]

The figures are the results of `benchmarks/gpu.py`, one file for each run, in docs/measurements. --check: change
nothing, and fail where the page says something else.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"
NAMES = {
    "vmamba_tiny_s1l8": "VMamba-T (s1l8)",
    "vmamba_tiny_s2l5": "VMamba-T (s2l5)",
    "sparx_mamba_tiny": "SparX-Mamba-T",
    "swin_tiny_patch4_window7_224": "Swin-T",
    "convnext_tiny": "ConvNeXt-T",
    "mambaout_tiny": "MambaOut-T",
}
GROUPS = {
    "inference, eager, 224 px, batch 128": "inference",
    "inference, eager, 224 px, batch 128, half weights": "the same, `.half()`",
    "training step, eager, 224 px, batch 128": "training step",
    "inference, eager, 512 px, batch 32": "inference, 512 px, batch 32",
    "inference, eager, 1024 px, batch 8": "inference, 1024 px, batch 8",
}


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None) -> str:
    """Three digits, or nothing."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def networks(rows: list[dict]) -> str:
    """Eager networks: a row for each network, a column for each group."""
    found = {(row["group"], row["model"]): row for row in rows if "images_per_s" in row}
    groups = [group for group in GROUPS if any(key[0] == group for key in found)]
    lines = []
    for model, name in NAMES.items():
        cells = []
        for group in groups:
            row = found.get((group, model))
            peak = (
                f", {number(row['peak_gb'])} GB" if row and "peak_gb" in row and "training" in group else ""
            )
            cells.append(f"{number(row['images_per_s'])}{peak}" if row else "")
        lines.append([name, *cells])
    return table(["images/s", *(GROUPS[group] for group in groups)], lines)


def ratios(rows: list[dict]) -> str:
    """Our eager networks over timm's."""
    others = {"swin_tiny_patch4_window7_224": "Swin-T", "convnext_tiny": "ConvNeXt-T"}
    lines = []
    for row in rows:
        if (
            row.get("group") in GROUPS
            and row["model"] in list(NAMES)[:3]
            and f"over_{next(iter(others))}" in row
        ):
            over = [number(row.get(f"over_{other}")) for other in others]
            lines.append([NAMES[row["model"]], GROUPS[row["group"]], *over])
    return table(["speed", "", *(f"over {name}" for name in others.values())], lines)


def compiled(rows: list[dict]) -> str:
    """Compiled networks: their times beside the eager ones."""
    lines = []
    order = list(NAMES)
    for row in sorted(rows, key=lambda r: (r["batch"] == 1, r["step"], order.index(r["model"]))):
        step = f"{row['step']}, batch {row['batch']}" + (", CUDA graphs" if row["mode"] != "default" else "")
        if "compiled_ms" not in row:
            lines.append([NAMES[row["model"]], step, row["said"][:60], "", "", "", ""])
            continue
        over = [row.get("over_swin_tiny_patch4_window7_224"), row.get("over_convnext_tiny")]
        cells = [row["compiled_ms"], row["eager_ms"], *over, row["compile_s"]]
        lines.append([NAMES[row["model"]], step, *map(number, cells)])
    header = ["compiled", "", "ms", "eager, ms", "over Swin-T", "over ConvNeXt-T", "compile, s"]
    return table(header, lines)


def operator(rows: list[dict]) -> str:
    """The scan at 224 pixels and batch 128: times, and the fraction that its floor is of them."""
    found = {(row["shape"], row["pass"]): row for row in rows}
    lines = []
    for stage in (1, 2, 3, 4):
        shape = f"stage {stage}, 224 px, batch 128"
        cells = []
        for way in ("forward", "backward"):
            row = found.get((shape, way))
            if row:
                cells += [number(row["ms"]), number(row.get("floor_ms")), f"{row.get('share', 0):.2f}"]
        lines.append([str(stage), *cells])
    header = ["stage", "forward, ms", "floor, ms", "share", "backward, ms", "floor, ms", "share"]
    return table(header, lines)


def one_image(rows: list[dict]) -> str:
    """Eager passes of one image."""
    ways = {
        "autocast_ms": "autocast",
        "open_autocast_ms": "`no_grad`, one open autocast",
        "half_ms": "`.half()`",
        "kernels_ms": "kernels alone",
        "kernels": "kernels, number",
    }
    ways = {key: title for key, title in ways.items() if any(key in row for row in rows)}
    lines = [[NAMES[row["model"]], *(number(row.get(key)) for key in ways)] for row in rows]
    return table(["one image, ms", *ways.values()], lines)


def published(rows: list[dict]) -> str:
    """Beside the published CUDA implementation in the same process."""
    lines = []
    for row in rows:
        if "relative_error" in row:
            lines.append([row["what"], "", "", f"relative error {row['relative_error']:.1e}", ""])
        else:
            cells = [row["published_ms"], row["ms"], row["speed"], row.get("memory")]
            lines.append([row["what"], *map(number, cells)])
    return table(["", "published, ms", "ours, ms", "speed", "memory, ours over published"], lines)


def norms(rows: list[dict]) -> str:
    """Norms of 128 images, float32 to float16, with and without the residual sum."""
    columns = ("pytorch_ms", "norm_ms", "add_norm_ms", "backward_ms")
    lines = [
        [f"{row['channels']}, {row['pixels']}, {row['per']}", *(number(row[key]) for key in columns)]
        for row in rows
    ]
    header = ["norm: channels, pixels, one for each", "PyTorch's and cast, ms", "`norm`, ms"]
    return table([*header, "`add_norm`, ms", "its backward, ms"], lines)


def kernels(rows: list[dict]) -> str:
    """What the kernels of a step take by themselves."""
    lines = [[NAMES[row["model"]], row["step"], number(row["kernels_ms"])] for row in rows]
    return table(["kernels alone, batch 128", "", "ms"], lines)


def plan(rows: list[dict]) -> str:
    """The scan's forward pass, cut as before and as now."""
    lines = [[str(row["stage"]), number(row["before_ms"]), number(row["ms"])] for row in rows]
    return table(["scan forward, stage", "plan of before, ms", "plan of now, ms"], lines)


SECTIONS = {
    "Networks": lambda rows: networks(rows) + "\n" + ratios(rows),
    "Networks, compiled": compiled,
    "One image, eager": one_image,
    "The operator": operator,
    "Kernels of a step": kernels,
    "Norms with their sums": norms,
    "The scan's plan": plan,
    "Against the published CUDA networks": published,
}


def run(found: dict) -> str:
    """One run of benchmarks/gpu.py as Markdown."""
    about = found["about"]
    where = ", ".join(f"{key} {about[key]}" for key in ("torch", "triton", "timm", "python") if key in about)
    parts = [
        f"### {about['device']}, {about['date'][:10]}, commit {about.get('commit', 'unknown')}\n\n{where}.\n"
    ]
    checked = found.get("Accuracy: relative RMS error against float64", []) + found.get("Behaviour", [])
    if checked:
        passed = sum(row["passed"] for row in checked)
        worst = {}
        for row in checked:
            if "error" in row:
                worst[row["dtype"]] = max(worst.get(row["dtype"], 0.0), row["error"])
        errors = ", ".join(f"{dtype} {error:.1e}" for dtype, error in sorted(worst.items()))
        parts.append(
            f"{passed} of {len(checked)} checks passed; largest relative error against float64: {errors}.\n"
        )
    parts += [render(found[title]) for title, render in SECTIONS.items() if title in found]
    if "remarks" in found:
        parts.append(found["remarks"] + "\n")
    return "\n".join(parts)


def page(text: str) -> str:
    """The page with the tables of every run, the newest first."""
    files = sorted(DOCS.glob("measurements/*.json"))
    runs = sorted((json.loads(f.read_text()) for f in files), key=lambda found: found["about"]["date"])
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return before + BEGIN + "\n" + "\n".join(run(found) for found in reversed(runs)) + "\n" + END + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page differs")
    args = parser.parse_args()
    path = DOCS / "gpu.md"
    text = path.read_text()
    made = page(text)
    if args.check:
        return int(made != text)
    path.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
