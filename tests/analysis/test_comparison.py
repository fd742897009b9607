"""Every number the papers print for our networks, against what they cost here."""

from __future__ import annotations

import json

import pytest

from ganglion.analysis.comparison import Comparison, compare
from ganglion.analysis.published import ROWS, PaperRow
from ganglion_cli import main


@pytest.fixture(scope="module")
def found() -> list[Comparison]:
    return compare()


def test_every_cell_agrees_or_says_why_not(found):
    unexplained = [c for c in found if not c.agrees and not c.note]
    assert [f"{c.table}, {c.row}: {c.measured:.4f}, {c.paper} printed" for c in unexplained] == []


#: Parameters and GFLOPs of the published networks under the published counter, and of the paper's studies on them.
#: Finer than the papers print, so that a forgotten norm or pool shows.
EXACT = {
    "sparx_mamba_tiny": (27_051_794, "5.247"),
    "sparx_mamba_small": (47_444_712, "9.259"),
    "sparx_mamba_base": (83_536_168, "15.895"),
    "sparx_mamba_tiny_plain": (27_399_448, "5.377"),
    "sparx_mamba_tiny_s1": (29_910_671, "5.714"),
    "sparx_mamba_tiny_s3": (26_307_795, "5.133"),
    "sparx_mamba_tiny_s4": (25_772_756, "5.059"),
    "sparx_mamba_tiny_m2": (26_842_834, "5.206"),
    "sparx_mamba_tiny_dgc": (28_836_498, "5.520"),
    "sparx_mamba_tiny_concat": (27_900_696, "5.541"),
    "sparx_mamba_tiny_no_cgca": (26_309_400, "5.263"),
    "sparx_mamba_tiny_no_dpe": (27_013_394, "5.235"),
    "sparx_mamba_tiny_no_skip": (27_004_184, "5.239"),
    "sparx_mamba_tiny_no_sr": (27_013_266, "5.421"),
    "sparx_mamba_tiny_sra": (27_032_530, "5.335"),
    "sparx_ssm_tiny": (25_544_978, "4.803"),
    "sparx_bissm_tiny": (25_916_690, "4.907"),
    "vmamba_tiny_s2l5_cascade": (30_705_832, "4.879"),
}


def test_third_decimal(found):
    measured = {(c.model, c.quantity): c.measured for c in found if c.img_size == 224 and c.head is None}
    counted = {m: (round(measured[m, "params"] * 1e6), f"{measured[m, 'flops']:.3f}") for m in EXACT}
    assert counted == EXACT


#: Parameters and FLOPs of detectors and segmentors by the authors' own scripts, and where they print none, by a count
#: of the published networks.
DENSE = {
    ("mask_rcnn", "vmamba_tiny_s2l5"): (50_212_080, "270.19"),
    ("mask_rcnn", "vmamba_small_s2l15"): (69_654_000, "348.92"),
    ("mask_rcnn", "vmamba_base_s2l15"): (107_931_376, "485.49"),
    ("mask_rcnn", "sparx_mamba_tiny"): (46_732_001, "278.94"),
    ("upernet", "vmamba_tiny_s2l5"): (62_359_340, "947.78"),
    ("upernet", "vmamba_small_s2l15"): (81_801_260, "1028.40"),
    ("upernet", "vmamba_base_s2l15"): (122_069_292, "1170.34"),
    ("upernet", "sparx_mamba_tiny"): (57_077_014, "954.57"),
    ("semantic_fpn", "vmamba_tiny_s2l5"): (34_311_318, "188.55"),
    ("semantic_fpn", "sparx_mamba_tiny"): (30_831_232, "196.56"),
}


def test_detectors_and_segmentors_exactly(found):
    measured = {(c.head, c.model, c.quantity): c.measured for c in found}
    assert {
        (head, model): (
            round(measured[head, model, "params"] * 1e6),
            f"{measured[head, model, 'flops']:.2f}",
        )
        for head, model in DENSE
    } == DENSE


def test_no_note_without_a_reason(found):
    """A note on a cell that agrees would excuse a later mistake."""
    assert [f"{c.table}, {c.row}: {c.note}" for c in found if c.agrees and c.note] == []


def test_nothing_is_far_off(found):
    """Cells with a note included. Only VMamba-S of Table 2 is: its misprint, and its first version."""
    far = {(c.row, c.paper) for c in found if abs(c.difference) / float(c.paper) >= 0.05}
    assert far == {("VMamba-S Mask R-CNN", "384"), ("VMamba-S 1x Mask R-CNN", "357")}


def test_all_tables_are_there(found):
    cells = {(c.table, c.row, c.quantity) for c in found}
    assert len(cells) == len(found) == 2 * len(ROWS), "every row prints both"
    tables = {c.table for c in found}
    assert tables >= {f"VMamba Table {i}" for i in range(1, 6)} | {"VMamba steps"}
    assert tables >= {f"SparX Table {i}" for i in range(2, 16)}


def test_a_wrong_number_is_seen():
    row = PaperRow(table="t", row="r", model="test_vmamba", params="0.1", flops="9.99", img_size=32)
    params, flops = compare([row])
    assert (params.unit, flops.unit) == ("M", "G")
    assert flops.agrees is False
    assert flops.difference == pytest.approx(flops.measured - 9.99)


def test_command(found, monkeypatch, capsys):
    monkeypatch.setattr("ganglion.analysis.comparison.compare", lambda: found)
    assert main(["info", "--paper", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [cell["measured"] for cell in report] == [cell.measured for cell in found]
    assert main(["info", "--paper"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(found) + 3
    assert f"{sum(cell.agrees for cell in found)} of {len(found)} numbers agree" in out
