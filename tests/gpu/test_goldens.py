"""The published networks' outputs, computed on a GPU: float32 without TF32, and under autocast."""

from __future__ import annotations

import os

import pytest
import timm
import torch

import ganglion
from tests.golden_data import Golden, image, load
from tests.tolerances import relative_rms

REHEARSED = os.environ.get("GANGLION_TEST_DEVICE") == "cpu"
pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or REHEARSED), reason="NOT TESTED on a GPU: there is none here"
)
DEVICE = "cpu" if REHEARSED else "cuda"
#: Relative RMS error of logits against float64, by the dtype that autocast computes in.
BOUNDS = {torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}
NETWORKS = {
    "vmamba/vmamba_tiny_s1l8": "vmamba_tiny_s1l8",
    "vmamba/vmamba_tiny_s2l5": "vmamba_tiny_s2l5",
    "vmamba/vanilla_vmamba_tiny": "vanilla_vmamba_tiny",
    "sparx/sparx_mamba_t": "sparx_mamba_tiny",
    "sparx/sparx_mamba_s": "sparx_mamba_small",
}


def first(golden: Golden) -> tuple[torch.Tensor, torch.Tensor]:
    """The first input of a golden file and the logits that belong to it."""
    inputs = golden.meta["inputs"]
    if isinstance(inputs, dict):
        key, size = next(iter(inputs.items()))
        return image(size["batch"], size["h"], size["w"], size["seed"]), golden[f"logits_{key}"]
    batch, height, width, seed = inputs[0]
    return image(batch, height, width, seed), golden[f"{batch}x3x{height}x{width}.s{seed}.logits_f64"]


@pytest.fixture
def exact_products():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", NETWORKS)
def test_logits(name, exact_products):
    golden = load(name)
    model = timm.create_model(NETWORKS[name]).eval()
    ganglion.load_checkpoint(model, golden.state_dict())
    model = model.to(DEVICE)
    x, logits = first(golden)
    for dtype, bound in BOUNDS.items():
        if REHEARSED and dtype == torch.float16:
            continue
        with torch.inference_mode(), torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            found = model(x.to(DEVICE)).cpu()
        assert relative_rms(found, logits) <= bound, dtype
