"""Parameters and FLOPs that the two papers print for the networks of this library, as printed.

VMamba (Liu et al. 2024): Tables 1 to 5, the acceleration steps of section 4.3, the sizes of its repository.
SparX (Lou et al. 2025): Tables 2 to 15; Table 1 has neither parameters nor FLOPs. Strings, because the number of
digits says how exact a number is.
"""

from __future__ import annotations

from dataclasses import dataclass

from .dense import SETTINGS, HeadName


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One network in one table.

    head: the detector or segmentor over the network, None for a classifier.
    params: millions. flops: 1e9 multiply-accumulates for one image of img_size, a side or height and width.
    attention: softmax attention is counted too. The papers' counter sees it where it is written as matrix products, as
        in Swin, in FcaFormer and in DMCA with its learned scale (detectors), and not where it is one fused call, as in
        DMCA elsewhere.
    *_note: why the printed number is not what the network costs, empty if it is.
    """

    table: str
    row: str
    model: str
    params: str
    flops: str
    img_size: int | tuple[int, int] = 224
    head: HeadName | None = None
    attention: bool = False
    params_note: str = ""
    flops_note: str = ""


def _table(table: str, *rows: tuple) -> tuple[PaperRow, ...]:
    """Rows of (name, model, params, flops) and, if there are any, notes."""
    return tuple(
        PaperRow(table=table, row=name, model=model, params=params, flops=flops, **dict(*notes))
        for name, model, params, flops, *notes in rows
    )


def _resolutions(table: str, name: str, model: str, params: str, flops: dict[int, str], note: str = ""):
    return tuple(
        PaperRow(
            table=table,
            row=f"{name} {size}",
            model=model,
            params=params,
            flops=printed,
            img_size=size,
            params_note=note,
        )
        for size, printed in flops.items()
    )


_HEADS: dict[HeadName, str] = {"mask_rcnn": "Mask R-CNN", "upernet": "UperNet", "semantic_fpn": "S-FPN"}


def _dense(table: str, head: HeadName, *rows: tuple) -> tuple[PaperRow, ...]:
    """Rows of (name, model, params, flops) and, if there are any, notes and counting, of networks under a head."""
    return tuple(
        PaperRow(
            table=table,
            row=f"{name} {_HEADS[head]}",
            model=model,
            head=head,
            params=params,
            flops=flops,
            img_size=SETTINGS[head].img_size,
            **dict(*more),
        )
        for name, model, params, flops, *more in rows
    )


_VMAMBA_FLOPS = {224: "4.9", 384: "14.3", 512: "25.4", 640: "39.6", 768: "57.1", 1024: "101.5"}
_SPARX_FLOPS = {224: "5.2", 384: "15.4", 512: "27.4", 640: "42.8", 768: "61.7", 1024: "109.6"}

_TRUNCATED = {"params_note": "30.706: the paper cuts off digits"}
_WHOLE = "the 31 of the other tables with a 0 added; 30.7"
_WORDS = "the paper has no code for it: the nearest form of several"
_EINSUM = "the published counter rounds each einsum to four digits"

# What the detectors cost is that of their first 1000 proposals and 100 masks. SparX's detectors have the learned scale,
# for which attention is written out, and so counted.
_DETECTORS = (
    ("VMamba-T", "vmamba_tiny_s2l5", "50", "270"),
    (
        "VMamba-S",
        "vmamba_small_s2l15",
        "70",
        "384",
        {"flops_note": "misprint: 348 with digits transposed; 348.9 in the repository"},
    ),
    ("VMamba-B", "vmamba_base_s2l15", "108", "485"),
    ("SparX-Mamba-T", "sparx_mamba_tiny", "47", "279", {"attention": True}),
    ("SparX-Mamba-S", "sparx_mamba_small", "67", "361", {"attention": True}),
    ("SparX-Mamba-B", "sparx_mamba_base", "103", "498", {"attention": True}),
)
_CUT = "the paper cuts off digits"
_VMAMBA_S = "misprint: 1028.4 in the repository"
# With both heads the base network's are those with attention, the tiny one's those without.
_UPERNET = (
    ("VMamba-T", "vmamba_tiny_s2l5", "62", "948"),
    ("VMamba-B", "vmamba_base_s2l15", "122", "1170"),
    ("SparX-Mamba-T", "sparx_mamba_tiny", "57", "954", {"flops_note": _CUT}),
    ("SparX-Mamba-S", "sparx_mamba_small", "77", "1039", {"params_note": _CUT}),
    ("SparX-Mamba-B", "sparx_mamba_base", "115", "1181", {"attention": True}),
)
_SEMANTIC_FPN = (
    ("VMamba-T", "vmamba_tiny_s2l5", "34", "189"),
    ("VMamba-S", "vmamba_small_s2l15", "54", "269"),
    ("VMamba-B", "vmamba_base_s2l15", "92", "409"),
    ("SparX-Mamba-T", "sparx_mamba_tiny", "31", "197"),
    ("SparX-Mamba-S", "sparx_mamba_small", "51", "281", {"attention": True, "flops_note": _CUT}),
    ("SparX-Mamba-B", "sparx_mamba_base", "87", "422", {"attention": True}),
)
_CLASSIFIERS = (
    ("VMamba-T", "vmamba_tiny_s2l5", "31", "4.9"),
    ("SparX-Mamba-T", "sparx_mamba_tiny", "27", "5.2"),
    ("VMamba-S", "vmamba_small_s2l15", "50", "8.7"),
    ("SparX-Mamba-S", "sparx_mamba_small", "47", "9.3"),
    ("VMamba-B", "vmamba_base_s2l15", "89", "15.4"),
    ("SparX-Mamba-B", "sparx_mamba_base", "84", "15.9"),
)

DENSE: tuple[PaperRow, ...] = (
    *_dense(
        "VMamba Table 2",
        "mask_rcnn",
        *_DETECTORS[:3],
        (
            "VMamba-S 1x",
            "vanilla_vmamba_small",
            "64",
            "357",
            {"flops_note": "the first version, by the counter of its time, which gave 9.1 for 11.2 G at 224"},
        ),
    ),
    *_dense(
        "VMamba Table 3",
        "upernet",
        *_UPERNET[:2],
        ("VMamba-S", "vmamba_small_s2l15", "82", "1039", {"flops_note": _VMAMBA_S}),
    ),
    *(row for table in (3, 11, 14) for row in _dense(f"SparX Table {table}", "mask_rcnn", *_DETECTORS)),
    *(
        row
        for table, flops in ((4, "1038"), (13, "1039"))
        for row in _dense(
            f"SparX Table {table}",
            "upernet",
            *_UPERNET,
            ("VMamba-S", "vmamba_small_s2l15", "82", flops, {"flops_note": _VMAMBA_S}),
        )
        + _dense(f"SparX Table {table}", "semantic_fpn", *_SEMANTIC_FPN)
    ),
    *_dense(
        "SparX Table 7",
        "semantic_fpn",
        ("Baseline", "sparx_mamba_tiny", "30.8", "197"),
        ("PlainNet", "sparx_mamba_tiny_plain", "31.1", "199"),
        ("S=1", "sparx_mamba_tiny_s1", "33.7", "206"),
        ("S=3", "sparx_mamba_tiny_s3", "30.1", "194"),
        ("S=4", "sparx_mamba_tiny_s4", "29.6", "193"),
        (
            "M=2",
            "sparx_mamba_tiny_m2",
            "30.6",
            "197",
            {"flops_note": "that of the baseline; with attention it is 196.65"},
        ),
        ("M=4", "sparx_mamba_tiny_m4", "31.2", "198"),
    ),
    *_dense(
        "SparX Table 8",
        "semantic_fpn",
        ("Baseline", "sparx_mamba_tiny", "30.8", "197"),
        ("w/o DPE", "sparx_mamba_tiny_no_dpe", "30.7", "196", {"params_note": _CUT}),
        ("w/o Skip", "sparx_mamba_tiny_no_skip", "30.8", "200", {"flops_note": "misprint: that of w/o SR"}),
        ("w/o SR", "sparx_mamba_tiny_no_sr", "30.8", "196", {"flops_note": "misprint: that of w/o Skip"}),
    ),
    *_dense(
        "SparX Table 9",
        "upernet",
        ("SparX-Swin-T", "sparx_swin_tiny", "57", "948", {"attention": True, "flops_note": _WORDS}),
        (
            "SparX-Swin-B",
            "sparx_swin_base",
            "118",
            "1201",
            {"attention": True, "params_note": _CUT, "flops_note": _WORDS},
        ),
    ),
    # The headers of these two columns are swapped in print.
    *_dense(
        "SparX Table 9",
        "mask_rcnn",
        (
            "SparX-Swin-T",
            "sparx_swin_tiny",
            "45",
            "270",
            {"attention": True, "params_note": _WORDS, "flops_note": _WORDS},
        ),
        ("SparX-Swin-B", "sparx_swin_base", "107", "518", {"attention": True, "flops_note": _WORDS}),
    ),
    *_dense(
        "SparX Table 10",
        "upernet",
        ("VMamba-T (SS2D)", "vmamba_tiny_s2l5", "62", "948"),
        ("SparX-Mamba-T (SSM)", "sparx_ssm_tiny", "55", "946", {"params_note": _WORDS, "attention": True}),
        (
            "SparX-Mamba-T (Bi-SSM)",
            "sparx_bissm_tiny",
            "55",
            "951",
            {"params_note": _WORDS, "flops_note": _WORDS},
        ),
        ("SparX-Mamba-T (SS2D)", "sparx_mamba_tiny", "57", "954", {"flops_note": _CUT}),
    ),
)

ROWS: tuple[PaperRow, ...] = (
    *_table(
        "VMamba Table 1",
        ("VMamba-T", "vmamba_tiny_s2l5", "31", "4.9"),
        ("VMamba-S", "vmamba_small_s2l15", "50", "8.7"),
        ("VMamba-B", "vmamba_base_s2l15", "89", "15.4"),
    ),
    *_resolutions("VMamba Table 4", "VMamba-T", "vmamba_tiny_s2l5", "31", _VMAMBA_FLOPS),
    *_table(
        "VMamba Table 5",
        ("Unidi-Scan", "vmamba_tiny_s2l5_unidi", "30.70", "4.86", _TRUNCATED),
        ("Bidi-Scan", "vmamba_tiny_s2l5_bidi", "30.70", "4.86", _TRUNCATED),
        (
            "Cascade-Scan",
            "vmamba_tiny_s2l5_cascade",
            "30.70",
            "4.86",
            _TRUNCATED | {"flops_note": "two more LayerNorms than CSM in each block"},
        ),
        ("CSM", "vmamba_tiny_s2l5", "30.70", "4.86", _TRUNCATED),
    ),
    # The paper's text gives 23 M for V0 to V5 and 29 M for V6; the digits are those of the repository's
    # configurations under its own counter.
    *_table(
        "VMamba steps",
        ("V0 to V4", "vanilla_vmamba_tiny", "22.893448", "5.6269"),
        ("V5", "vmamba_tiny_v5", "22.893448", "5.6269"),
        ("V6", "vmamba_tiny_v6", "28.991656", "5.6327"),
        ("V7", "vmamba_tiny_v7", "22.926376", "4.0185"),
        ("V7, 5 layers", "vmamba_tiny_v7_l5", "28.256680", "5.1788"),
        ("V8", "vmamba_tiny_v8", "26.247592", "4.8609"),
        ("V9", "vmamba_tiny_s2l5", "30.705832", "4.8577"),
    ),
    *_table(
        "VMamba repository",
        ("vanilla T", "vanilla_vmamba_tiny", "22.893448", "5.6269"),
        ("vanilla S", "vanilla_vmamba_small", "44.417416", "11.2315"),
        ("vanilla B", "vanilla_vmamba_base", "76.254056", "18.0201", {"flops_note": _EINSUM}),
        ("T s2l5", "vmamba_tiny_s2l5", "30.705832", "4.8577"),
        ("S s2l15", "vmamba_small_s2l15", "50.147752", "8.7158"),
        ("B s2l15", "vmamba_base_s2l15", "88.557800", "15.3589"),
        ("T s1l8", "vmamba_tiny_s1l8", "30.249064", "4.9056"),
        ("S s1l20", "vmamba_small_s1l20", "49.012840", "8.6122"),
        ("B s1l20", "vmamba_base_s1l20", "86.614504", "15.2209"),
    ),
    *_table("SparX Table 2", *_CLASSIFIERS),
    *_table(
        "SparX Table 5",
        ("VMamba-T", "vmamba_tiny_s2l5", "31.0", "4.9", {"params_note": _WHOLE}),
        ("DGC-Mamba-T", "sparx_mamba_tiny_dgc", "28.8", "5.5"),
        ("DSN-Mamba-T", "sparx_mamba_tiny_dsn", "30.9", "6.0", {"params_note": _WORDS}),
        ("SparX-Mamba-T", "sparx_mamba_tiny", "27.1", "5.2"),
    ),
    *_table(
        "SparX Table 6",
        ("Concat", "sparx_mamba_tiny_concat", "27.9", "5.5"),
        ("w/o CGCA", "sparx_mamba_tiny_no_cgca", "26.4", "5.3", {"params_note": _WORDS}),
        ("CSA", "sparx_mamba_tiny_csa", "26.0", "5.2"),
        ("SRA", "sparx_mamba_tiny_sra", "27.0", "5.3"),
        ("SCA", "sparx_mamba_tiny_sca", "27.9", "5.2", {"attention": True}),
        ("DMCA", "sparx_mamba_tiny", "27.1", "5.2"),
    ),
    *_table(
        "SparX Table 7",
        ("Baseline", "sparx_mamba_tiny", "27.1", "5.2"),
        ("PlainNet", "sparx_mamba_tiny_plain", "27.4", "5.4"),
        ("S=1", "sparx_mamba_tiny_s1", "29.9", "5.7"),
        ("S=3", "sparx_mamba_tiny_s3", "26.3", "5.1"),
        ("S=4", "sparx_mamba_tiny_s4", "25.8", "5.1"),
        ("M=2", "sparx_mamba_tiny_m2", "26.8", "5.2"),
        (
            "M=4",
            "sparx_mamba_tiny_m4",
            "27.5",
            "5.5",
            {"flops_note": "misprint: the row's 198 G with S-FPN fits 5.3"},
        ),
    ),
    *_table(
        "SparX Table 8",
        ("Baseline", "sparx_mamba_tiny", "27.1", "5.2"),
        ("w/o DPE", "sparx_mamba_tiny_no_dpe", "27.0", "5.2"),
        ("w/o Skip", "sparx_mamba_tiny_no_skip", "27.0", "5.2"),
        ("w/o SR", "sparx_mamba_tiny_no_sr", "27.0", "5.4"),
    ),
    *_table(
        "SparX Table 9",
        ("SparX-Swin-T", "sparx_swin_tiny", "26", "4.7", {"attention": True}),
        ("SparX-Swin-B", "sparx_swin_base", "88", "16.2", {"attention": True, "flops_note": _WORDS}),
    ),
    *_table(
        "SparX Table 10",
        ("VMamba-T (SS2D)", "vmamba_tiny_s2l5", "31", "4.9"),
        ("SparX-Mamba-T (SSM)", "sparx_ssm_tiny", "25", "4.8", {"params_note": _WORDS}),
        (
            "SparX-Mamba-T (Bi-SSM)",
            "sparx_bissm_tiny",
            "25",
            "5.1",
            {"params_note": _WORDS, "flops_note": _WORDS},
        ),
        ("SparX-Mamba-T (SS2D)", "sparx_mamba_tiny", "27", "5.2"),
    ),
    *_resolutions("SparX Table 15", "VMamba-T", "vmamba_tiny_s2l5", "31.0", _VMAMBA_FLOPS, _WHOLE),
    *_resolutions("SparX Table 15", "SparX-Mamba-T", "sparx_mamba_tiny", "27.1", _SPARX_FLOPS),
    *_table("SparX Table 12", *_CLASSIFIERS),
    *DENSE,
)
