"""Time and peak memory of a detector on a 640 x 480 photo, beside others; interleaved.

python benchmarks/detect.py [--rounds 3] [--threads 2]

Weights are random: a bound on the score keeps no detection, so what is timed is resizing, backbone, neck, RPN, 1000
proposals and the box head. "ours": the same detector on two backbones; the third is torchvision's own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

#: What is compared: printed name, backbone; None for torchvision's own detector.
DETECTORS = {
    "vmamba": ("Mask R-CNN VMamba-T", "vmamba_tiny_s1l8"),
    "swin": ("Mask R-CNN Swin-T (timm)", "swin_tiny_patch4_window7_224"),
    "resnet": ("torchvision Mask R-CNN ResNet-50", None),
}


def make(key: str) -> Callable[[], object]:
    from ganglion.heads import create_detector
    from ganglion.tasks.detection.transforms import Resize, to_pixels

    torch.manual_seed(0)
    photo = torch.randint(0, 256, (3, 480, 640), dtype=torch.uint8)
    backbone = DETECTORS[key][1]
    if backbone is None:
        from torchvision.models.detection import maskrcnn_resnet50_fpn

        other = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, box_score_thresh=0.5).eval()
        return lambda: other([photo / 255])
    ours = create_detector("mask_rcnn", backbone, num_classes=80, score_threshold=0.5).eval()
    statistics_ = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    resize = Resize({"input_size": [3, 800, 1333], **statistics_})
    return lambda: ours([resize(to_pixels(photo), None)[0]], [(480, 640)])


def peak_mib() -> float:
    """Of this process alone: getrusage's peak would be that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--memory-of", choices=DETECTORS, help="print the peak memory of one detector, in MiB"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        if args.memory_of:
            run = make(args.memory_of)
            before = peak_mib()
            run()
            print(f"{peak_mib():.0f} {peak_mib() - before:.0f}")
            return
        runs = {key: make(key) for key in DETECTORS}
        seconds: dict[str, list[float]] = {key: [] for key in runs}
        for number in range(args.rounds + 1):
            for key, run in runs.items():
                start = time.perf_counter()
                run()
                if number:  # the first warms up
                    seconds[key].append(time.perf_counter() - start)
    swin = statistics.median(seconds["swin"])
    print(f"{'detector':34} {'s/image':>8} {'x Swin':>7} {'peak MiB':>9} {'of the run':>10}")
    for key, (name, _) in DETECTORS.items():
        command = [sys.executable, __file__, "--memory-of", key, "--threads", str(args.threads)]
        peak, own = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        found = statistics.median(seconds[key])
        print(f"{name:34} {found:8.2f} {swin / found:7.2f} {peak:>9} {own:>10}")


if __name__ == "__main__":
    main()
