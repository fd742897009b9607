"""Speed, memory and accuracy as the papers print them, table by table: the presets of `ganglion bench`.

VMamba (Liu et al. 2024): Tables 1, 4 and 5, the steps of section 4.3 (A100). SparX (Lou et al. 2025): Tables 5, 6, 15,
16 and 17 (H800). Nobody has the same GPU: what can be compared are ratios to a table's reference row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One network at one size in one table.

    model: its name in timm's registry, None for a network that neither this library nor timm has.
    infer, train: images per second. memory: MB (2**20 bytes). top1: percent. None: not printed.
    """

    row: str
    model: str | None
    img_size: int = 224
    batch_size: int = 128
    infer: float | None = None
    train: float | None = None
    memory: float | None = None
    top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A table. reference: the row, at each size, that others are compared with."""

    table: str
    gpu: str
    reference: str
    rows: tuple[SpeedRow, ...]
    train: bool = False


_VMAMBA, _SPARX = "vmamba_tiny_s2l5", "sparx_mamba_tiny"
_SWIN = "swin_{}_patch4_window7_224"
_SIZES = (224, 384, 512, 640, 768, 1024)


def _vmamba_1() -> Iterator[SpeedRow]:
    for row, model, infer, train, top1 in (
        ("DeiT-S", "deit_small_patch16_224", 1759, 2397, 79.8),
        ("DeiT-B", "deit_base_patch16_224", 500, 1024, 81.8),
        ("ConvNeXt-T", "convnext_tiny", 1189, 701, 82.1),
        ("ConvNeXt-S", "convnext_small", 682, 444, 83.1),
        ("ConvNeXt-B", "convnext_base", 435, 334, 83.8),
        ("HiViT-T", None, 1391, 1300, 82.1),
        ("HiViT-S", None, 711, 697, 83.5),
        ("HiViT-B", None, 456, 541, 83.8),
        ("Swin-T", _SWIN.format("tiny"), 1247, 985, 81.3),
        ("Swin-S", _SWIN.format("small"), 719, 640, 83.0),
        ("Swin-B", _SWIN.format("base"), 457, 494, 83.5),
        ("S4ND-ConvNeXt-T", None, 684, 331, 82.2),
        ("S4ND-ViT-B", None, 404, 340, 80.4),
        ("ViM-S", None, 811, 232, 80.5),
        ("VMamba-T", _VMAMBA, 1335, 464, 82.5),
        ("VMamba-S", "vmamba_small_s2l15", 874, 313, 83.6),
        ("VMamba-B", "vmamba_base_s2l15", 645, 246, 83.9),
    ):
        yield SpeedRow(row=row, model=model, infer=infer, train=train, top1=top1)


def _vmamba_4() -> Iterator[SpeedRow]:
    for row, model, infer, train, top1 in (
        (
            "ResNet50",
            "resnet50",
            (2988, 1192, 705, 435, 309, 181),
            (1005, 518, 305, 200, 142, 81),
            (76.4, 76.5, 73.4, 69.7, 65.3, 52.1),
        ),
        (
            "ConvNeXt-T",
            "convnext_tiny",
            (1107, 405, 225, 147, 103, 60),
            (613, 240, 140, 90, 63, 36),
            (82.0, 81.0, 78.0, 74.3, 69.5, 55.4),
        ),
        (
            "DeiT-S",
            "deit_small_patch16_224",
            (1559, 494, 256, 144, 87, 36),
            (1130, 695, 386, 243, 156, 73),
            (80.7, 78.9, 74.2, 68.0, 70.0, 46.9),
        ),
        (
            "Swin-T",
            _SWIN.format("tiny"),
            (1061, 305, 168, 85, 52, 22),
            (740, 246, 122, 64, 36, 13),
            (81.2, 80.7, 79.0, 76.6, 73.1, 61.9),
        ),
        (
            "HiViT-T",
            None,
            (1259, 392, 186, 93, 54, 21),
            (948, 332, 150, 71, 37, 11),
            (81.9, 81.5, 79.3, 76.0, 71.4, 58.9),
        ),
        (
            "VMamba-T",
            _VMAMBA,
            (1226, 450, 272, 170, 117, 66),
            (398, 154, 100, 60, 42, 25),
            (82.5, 82.5, 81.1, 79.3, 76.1, 62.3),
        ),
    ):
        for i, size in enumerate(_SIZES):
            yield SpeedRow(
                row=row,
                model=model,
                img_size=size,
                batch_size=32,
                infer=infer[i],
                train=train[i],
                top1=top1[i],
            )


def _vmamba_5() -> Iterator[SpeedRow]:
    for row, model, infer, train, top1 in (
        ("Unidi-Scan", f"{_VMAMBA}_unidi", 1342, 464, 82.2),
        ("Bidi-Scan", f"{_VMAMBA}_bidi", 1344, 465, 74.8),
        ("Cascade-Scan", f"{_VMAMBA}_cascade", 817, 253, None),
        ("CSM", _VMAMBA, 1343, 464, 82.5),
    ):
        yield SpeedRow(row=row, model=model, infer=infer, train=train, top1=top1)


def _vmamba_steps() -> Iterator[SpeedRow]:
    """Figure 9, as far as section 4.3 gives its numbers in words."""
    for row, model, infer, top1 in (
        ("V0", "vanilla_vmamba_tiny", None, 82.2),
        ("V5", "vmamba_tiny_v5", 637, 82.2),
        ("V6", "vmamba_tiny_v6", None, 81.6),
        ("V7", "vmamba_tiny_v7", None, None),
        ("V8", "vmamba_tiny_v8", None, 82.2),
        ("V9", _VMAMBA, 1336, 82.5),
    ):
        yield SpeedRow(row=row, model=model, infer=infer, top1=top1)


def _sparx_5() -> Iterator[SpeedRow]:
    for row, model, memory, infer, top1 in (
        ("VMamba-T", _VMAMBA, 6784, 1613, 82.5),
        ("DGC-Mamba-T", f"{_SPARX}_dgc", 7523, 860, 83.4),
        ("DSN-Mamba-T", f"{_SPARX}_dsn", 7641, 830, 83.4),
        ("SparX-Mamba-T", _SPARX, 7066, 1370, 83.5),
    ):
        yield SpeedRow(row=row, model=model, memory=memory, infer=infer, top1=top1)


def _sparx_6() -> Iterator[SpeedRow]:
    for row, model, memory, infer, top1 in (
        ("Concat", f"{_SPARX}_concat", 6861, 1413, 82.8),
        ("w/o CGCA", f"{_SPARX}_no_cgca", 6853, 1425, 82.7),
        ("CSA", f"{_SPARX}_csa", 7053, 600, 83.1),
        ("SRA", f"{_SPARX}_sra", 9333, 997, 83.2),
        ("SCA", f"{_SPARX}_sca", 12453, 1275, 83.3),
        ("DMCA", _SPARX, 7066, 1370, 83.5),
    ):
        yield SpeedRow(row=row, model=model, memory=memory, infer=infer, top1=top1)


def _sparx_15() -> Iterator[SpeedRow]:
    for row, model, top1 in (
        ("ConvNeXt-T", "convnext_tiny", (82.1, 81.0, 78.0, 74.3, 69.5, 55.4)),
        ("Swin-T", _SWIN.format("tiny"), (81.3, 80.7, 79.0, 76.6, 73.1, 61.9)),
        ("VMamba-T", _VMAMBA, (82.5, 82.5, 81.1, 79.3, 76.1, 62.3)),
        ("SparX-Mamba-T", _SPARX, (83.5, 84.0, 82.9, 81.5, 79.5, 71.8)),
    ):
        for size, accuracy in zip(_SIZES, top1, strict=True):
            yield SpeedRow(row=row, model=model, img_size=size, batch_size=32, top1=accuracy)


def _sparx_16() -> Iterator[SpeedRow]:
    for row, model, infer, top1 in (
        ("ConvNeXt-T", "convnext_tiny", 2359, 82.1),
        ("Swin-T", _SWIN.format("tiny"), 2416, 81.3),
        ("Focal-T", None, 953, 82.2),
        ("BiFormer-S", None, 1072, 83.8),
        ("MPViT-S", None, 1534, 83.0),
        ("EfficientVMamba-B", None, 1943, 81.8),
        ("VMamba-T", _VMAMBA, 1613, 82.5),
        ("LocalVMamba-T", None, 597, 82.7),
        ("SparX-Mamba-T", _SPARX, 1370, 83.5),
        ("ConvNeXt-S", "convnext_small", 1359, 83.1),
        ("Swin-S", _SWIN.format("small"), 1419, 83.0),
        ("Focal-S", None, 558, 83.6),
        ("BiFormer-B", None, 673, 84.3),
        ("VMamba-S", "vmamba_small_s2l15", 1021, 83.6),
        ("LocalVMamba-S", None, 337, 83.7),
        ("SparX-Mamba-S", "sparx_mamba_small", 871, 84.2),
        ("ConvNeXt-B", "convnext_base", 957, 83.8),
        ("Swin-B", _SWIN.format("base"), 1006, 83.5),
        ("Focal-B", None, 428, 84.0),
        ("MPViT-B", None, 702, 84.3),
        ("VMamba-B", "vmamba_base_s2l15", 753, 83.9),
        ("SparX-Mamba-B", "sparx_mamba_base", 635, 84.5),
    ):
        yield SpeedRow(row=row, model=model, infer=infer, top1=top1)


def _sparx_17() -> Iterator[SpeedRow]:
    """The column of LocalVMamba-S repeats that of VMamba-S, as printed."""
    sizes = ((224, 128), (384, 128), (512, 128), (768, 64), (1024, 32))
    for row, model, infer, memory, top1 in (
        (
            "EfficientVMamba-B",
            None,
            (1943, 650, 383, 166, 95),
            (5308, 13080, 21108, 23556, 21106),
            (81.8, None, None, None, None),
        ),
        (
            "LocalVMamba-T",
            None,
            (597, 190, 106, 47, 28),
            (10810, 29494, 52206, 57508, 50830),
            (82.7, None, None, None, None),
        ),
        (
            "LocalVMamba-S",
            None,
            (1021, 367, 220, 93, 55),
            (6745, 17207, 29445, 32941, 29445),
            (83.6, 83.8, 82.9, 80.3, 73.7),
        ),
        (
            "VMamba-T",
            _VMAMBA,
            (1613, 584, 342, 147, 85),
            (6784, 17246, 29484, 32980, 29226),
            (82.5, 82.5, 81.1, 76.1, 62.3),
        ),
        (
            "VMamba-S",
            "vmamba_small_s2l15",
            (1021, 367, 220, 93, 55),
            (6745, 17207, 29445, 32941, 29445),
            (83.6, 83.8, 82.9, 80.3, 73.7),
        ),
        (
            "VMamba-B",
            "vmamba_base_s2l15",
            (753, 258, 151, 65, 38),
            (8703, 22483, 38695, 22467, 38695),
            (83.9, 84.1, 83.3, 80.6, 74.8),
        ),
        (
            "SparX-Mamba-T",
            _SPARX,
            (1366, 495, 298, 121, 65),
            (7066, 18934, 32562, 36466, 32338),
            (83.5, 84.0, 82.9, 79.5, 71.8),
        ),
        (
            "SparX-Mamba-S",
            "sparx_mamba_small",
            (871, 313, 194, 78, 41),
            (7317, 18603, 31971, 35569, 31859),
            (84.2, 84.8, 84.1, 81.1, 74.9),
        ),
        (
            "SparX-Mamba-B",
            "sparx_mamba_base",
            (635, 223, 138, 49, 29),
            (8807, 21501, 36929, 21427, 36981),
            (84.5, 84.8, 83.9, 81.0, 75.7),
        ),
    ):
        for i, (size, batch) in enumerate(sizes):
            yield SpeedRow(
                row=row,
                model=model,
                img_size=size,
                batch_size=batch,
                infer=infer[i],
                memory=memory[i],
                top1=top1[i],
            )


def _preset(table: str, gpu: str, reference: str, rows: Iterator[SpeedRow], *, train: bool = False) -> Preset:
    return Preset(table=table, gpu=gpu, reference=reference, rows=tuple(rows), train=train)


PRESETS: Mapping[str, Preset] = {
    "vmamba-1": _preset("VMamba Table 1", "A100", "VMamba-T", _vmamba_1(), train=True),
    "vmamba-4": _preset("VMamba Table 4", "A100", "VMamba-T", _vmamba_4(), train=True),
    "vmamba-5": _preset("VMamba Table 5", "A100", "CSM", _vmamba_5(), train=True),
    "vmamba-steps": _preset("VMamba Figure 9", "A100", "V9", _vmamba_steps()),
    "sparx-5": _preset("SparX Table 5", "H800", "VMamba-T", _sparx_5()),
    "sparx-6": _preset("SparX Table 6", "H800", "DMCA", _sparx_6()),
    "sparx-15": _preset("SparX Table 15", "H800", "VMamba-T", _sparx_15()),
    "sparx-16": _preset("SparX Table 16", "H800", "VMamba-T", _sparx_16()),
    "sparx-17": _preset("SparX Table 17", "H800", "VMamba-T", _sparx_17()),
}


def rows_at(preset: Preset, sizes: Sequence[int] | None) -> list[SpeedRow]:
    """The rows of a table at these sizes, of all sizes for None. Raises ValueError for sizes that it does not have."""
    there = sorted({row.img_size for row in preset.rows})
    for size in sizes or ():
        if size not in there:
            raise ValueError(f"{preset.table} has the sizes {', '.join(map(str, there))}, not {size}")
    return [row for row in preset.rows if sizes is None or row.img_size in sizes]
