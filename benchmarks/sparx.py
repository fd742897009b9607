"""SparX's Tables 5 and 6 as measured here, beside the paper's: memory, throughput, FLOPs, parameters.

    python benchmarks/sparx.py [--threads 2] [--batch 4] [--rounds 5]

Logits are checked against the golden network first. Throughput is inference in float32, all networks of a table in turn
in one process, medians of the ratios of the rounds to VMamba-T. Memory is the peak of all tensors alive at once without
weights, counted on fake tensors: the paper's is what a GPU's allocator held at batch 128, so only ratios compare.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import timm
import torch

sys.path[:0] = [str(Path(__file__).parents[1])]

import ganglion
from benchmarks._networks import build, paired_ratio, settings
from ganglion.analysis.complexity import activation_memory, complexity
from ganglion.analysis.timing import inference, seconds_in_turn
from tests.golden_data import image, load

#: Network -> the paper's memory (MB), images/s, GFLOPs and million parameters (H800, batch 128).
TABLE_5 = {
    "vmamba_tiny_s2l5": ("VMamba-T", 6784, 1613, 4.9, 31.0),
    "sparx_mamba_tiny_dgc": ("DGC-Mamba-T", 7523, 860, 5.5, 28.8),
    "sparx_mamba_tiny_dsn": ("DSN-Mamba-T", 7641, 830, 6.0, 30.9),
    "sparx_mamba_tiny": ("SparX-Mamba-T", 7066, 1370, 5.2, 27.1),
}
TABLE_6 = {
    "sparx_mamba_tiny": ("DMCA", 7066, 1370, 5.2, 27.1),
    "sparx_mamba_tiny_concat": ("Concat", 6861, 1413, 5.5, 27.9),
    "sparx_mamba_tiny_no_cgca": ("w/o CGCA", 6853, 1425, 5.3, 26.4),
    "sparx_mamba_tiny_csa": ("CSA", 7053, 600, 5.2, 26.0),
    "sparx_mamba_tiny_sra": ("SRA", 9333, 997, 5.3, 27.0),
    "sparx_mamba_tiny_sca": ("SCA", 12453, 1275, 5.2, 27.9),
}


def check() -> None:
    """Raise unless the logits are those of the published network."""
    golden = load("sparx/sparx_mamba_t")
    model = build("sparx_mamba_tiny", torch.float32, train=False)
    ganglion.load_checkpoint(model, golden.state_dict())
    with torch.inference_mode():
        logits = model(image(2, 224, 224, 0))
    error = (logits - golden["logits_224"]).abs().max().item()
    if not error <= 2e-5:
        raise SystemExit(f"logits are off by {error:.1e}, bound 2e-5: nothing was timed")
    print(f"logits of sparx_mamba_tiny within {error:.1e} of the published network\n")


def table(title: str, rows: dict[str, tuple[str, int, int, float, float]], others: list[str], args) -> None:
    x = torch.randn(args.batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    models = {name: build(name, torch.float32, train=False) for name in [*rows, *others]}
    steps = {name: lambda model=model: inference(model, x) for name, model in models.items()}
    seconds = seconds_in_turn(steps, args.rounds)
    first = next(iter(rows))
    bare = {name: timm.create_model(name, device="meta") for name in models}
    memory = {
        mode: {name: activation_memory(model, 224, mode=mode) for name, model in bare.items()}
        for mode in ("inference", "training")
    }
    print(
        f"{title}: batch {args.batch}, 224 x 224, float32, {args.rounds} rounds; ratios are to {rows[first][0]}"
    )
    print(
        f"  {'':30}{'images/s':>9}{'ratio':>7}{'paper':>7}  {'inference MiB':>13}{'ratio':>7}  {'training MiB':>12}"
        f"{'ratio':>7}{'paper':>7}  {'GFLOPs':>7}{'paper':>7}  {'M params':>8}{'paper':>7}"
    )
    for name, times in seconds.items():
        label, paper = (f"{rows[name][0]} ({name})", rows[name][1:]) if name in rows else (name, None)
        speed, _, _ = paired_ratio(seconds[first], times)
        cost = complexity(bare[name], 224)
        train_ratio = memory["training"][name] / memory["training"][first]
        infer_ratio = memory["inference"][name] / memory["inference"][first]
        printed = (
            [f"{v:.2f}" for v in (paper[1] / rows[first][2], paper[0] / rows[first][1])]
            if paper
            else ["", ""]
        )
        flops, params = [f"{v:.1f}" for v in paper[2:]] if paper else ["", ""]
        print(
            f"  {label[:30]:30}{args.batch / statistics.median(times):9.2f}{speed:7.2f}{printed[0]:>7}  "
            f"{memory['inference'][name] / 2**20:13.1f}{infer_ratio:7.2f}  "
            f"{memory['training'][name] / 2**20:12.1f}{train_ratio:7.2f}{printed[1]:>7}  "
            f"{cost.flops / 1e9:7.2f}{flops:>7}  {cost.params / 1e6:8.2f}{params:>7}"
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(settings() + "\n")
    check()
    table("Table 5", TABLE_5, ["swin_tiny_patch4_window7_224"], args)
    table("Table 6", TABLE_6, [], args)


if __name__ == "__main__":
    main()
