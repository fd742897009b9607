"""UperNet and Semantic FPN against the published ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from ganglion.heads import SEGMENTORS, at_size, create_segmentor, multi_scale, slide
from ganglion.heads.published import PUBLISHED_SEGMENTORS, published_segmentor
from ganglion.models import weight_names
from tests.heads.goldens import built, golden, image

#: Float64, for the bounds of the golden data, is served by the slower backend.
pytestmark = pytest.mark.filterwarnings("ignore:.*runs on the slower backend.*float64")

NAMES = ("upernet", "semantic_fpn")
#: Of the summaries, relative to the standard deviation.
BOUND = {torch.float64: 1e-8, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_maps_and_logits(name, dtype):
    reference, model = golden(name), built(name, dtype)
    x, bound = image(*reference.meta["input"], dtype=dtype), BOUND[dtype]
    maps = model.backbone(x)
    for i, found in enumerate(maps):
        assert reference.summary_error(f"backbone{i}", found) < bound
    if name == "semantic_fpn":
        for i, found in enumerate(model.neck(maps)):
            assert reference.summary_error(f"fpn{i}", found) < bound
    else:
        assert reference.summary_error("aux_logits", model.auxiliary_head(maps)) < bound
    logits = model.low_resolution(x)
    assert reference.summary_error("logits", logits) < bound
    assert (logits[1, 3] - reference["logits.image1_class3"]).abs().max() < bound * logits.std()
    whole = model(x)
    assert reference.summary_error("whole", whole) < bound
    same = whole.argmax(1) == torch.as_tensor(reference["whole.argmax"])
    # In float32 two classes of a pixel are 2e-6 apart.
    assert same.all() if dtype == torch.float64 else same.sum() >= same.numel() - 1


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_windows_sizes_and_scales(name, dtype):
    reference, model = golden(name), built(name, dtype)
    meta, bound = reference.meta, BOUND[dtype]
    x = image(*meta["input"], dtype=dtype)
    windows = slide(model, x, crop=tuple(meta["slide"]["crop"]), stride=tuple(meta["slide"]["stride"]))
    assert reference.summary_error("slide", windows) < bound
    assert (windows.argmax(1) == reference["slide.argmax"]).float().mean() > 0.9999
    height, width = meta["ori_shape"]
    assert reference.summary_error("resized", at_size(model, x[:1], (height, width))[0]) < bound
    sides, seed = meta["input"][1:3], meta["input"][3] + 1
    scaled = [
        image(1, *(int(side * ratio + 0.5) for side in sides), seed, dtype=dtype)
        for ratio in meta["tta"]["ratios"]
    ]
    probabilities = multi_scale(model, scaled, (height, width))[0]
    assert reference.summary_error("tta_probabilities", probabilities) < (
        bound if dtype == torch.float64 else 1e-5
    )


def training_case(meta: dict) -> tuple[Tensor, Tensor]:
    """Image and labels, as the golden file says."""
    case = meta["training"]
    batch, height, width, _ = case["input"]
    x = image(*case["input"])
    rows, columns = case["padded_from"]
    x[:, :, rows:], x[..., columns:] = 0, 0
    draw = np.random.default_rng([case["label_seed"], batch, height, width])
    coarse = draw.integers(0, meta["num_classes"], (batch, -(-height // 8), -(-width // 8)))
    labels = np.kron(coarse, np.ones((8, 8), int))[:, :height, :width]
    labels[:, rows:], labels[..., columns:], labels[:, 3:7, 5:20] = 255, 255, 255
    return x, torch.from_numpy(labels)


@pytest.mark.parametrize("name", NAMES)
def test_losses_gradients_and_statistics(name):
    reference = golden(name)
    model, meta = copy.deepcopy(built(name)), reference.meta
    x, labels = training_case(meta)
    for case in ("eval_bn", "train_bn"):
        if case == "train_bn":
            model.train()
            model.backbone.eval()
        losses = model.loss(x, labels)
        expected = meta["training"]["losses"][case]
        assert losses.keys() == expected.keys()
        for key, value in expected.items():
            rel = 1e-6 if key.endswith("acc_seg") else 1e-7  # accuracies are float32 there
            assert losses[key].item() == pytest.approx(value, rel=rel), key
    sum(value for key, value in losses.items() if key.endswith("loss_ce")).backward()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    kinds = [key.removesuffix(".mean") for key in reference.arrays if key.endswith(".mean")]
    for key in kinds:
        kind, _, published = key.partition(".")
        ours = weight_names.rename(published, model.official_names)
        if kind == "grad":
            assert reference.summary_error(key, parameters[ours].grad) < 1e-8, key
        elif kind == "after":
            assert reference.summary_error(key, buffers[ours]) < 1e-8, key


def test_wrong_targets_are_named():
    model = built("semantic_fpn")
    x = torch.zeros(1, 3, 32, 40, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"targets have shape \(1, 40, 32\): expected \(1, 32, 40\)"):
        model.loss(x, torch.zeros(1, 40, 32, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels \[150, 200\]: expected 0 to 149, or 255"):
        labels = torch.zeros(1, 32, 40, dtype=torch.long)
        labels[0, 0, :3] = torch.tensor([150, 255, 200])
        model.loss(x, labels)
    with pytest.raises(ValueError, match=r"stride \(9, 8\): expected from 1 to the crop \(8, 8\)"):
        slide(model, x, crop=(8, 8), stride=(9, 8))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("backbone", "arguments", "size"),
    [
        ("test_vmamba", {"in_chans": 5}, (33, 61)),
        ("test_sparx_swin", {}, (40, 50)),
        ("test_convnext", {}, (45, 37)),
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
            (45, 70),
        ),
    ],
)
@torch.no_grad()
def test_any_backbone_size_and_channels(name, backbone, arguments, size):
    own = {"channels": 8, "aux_channels": 4} if name == "upernet" else {"channels": 8, "neck_channels": 8}
    made = create_segmentor(name, backbone, num_classes=3, backbone_args=arguments, **own).eval()
    x = torch.randn(2, arguments.get("in_chans", 3), *size)
    assert made(x).shape == (2, 3, *size)
    assert torch.isfinite(made(x)).all()


def test_published_segmentors_name_what_there_is():
    assert len({entry.url for entry in PUBLISHED_SEGMENTORS.values()}) == len(PUBLISHED_SEGMENTORS) == 6
    for entry in PUBLISHED_SEGMENTORS.values():
        assert timm.is_model(entry.backbone) and entry.name in SEGMENTORS and entry.num_classes == 150
        assert entry.url.startswith("https://") and entry.url.endswith(".pth")
    with pytest.raises(ValueError, match=r"upernet\.vmamba_tiny\.160k"):
        published_segmentor("upernet.vmamba_tiny.80k")


def test_unknown_names_and_fields():
    with pytest.raises(ValueError, match=r"unknown segmentor 'uppernet'\. Did you mean 'upernet'"):
        create_segmentor("uppernet", "test_vmamba")
    with pytest.raises(TypeError, match=r"upernet: unknown field 'chanels'\. Did you mean 'channels'"):
        create_segmentor("upernet", "test_vmamba", chanels=4)
    with pytest.raises(ValueError, match="unknown network 'vmamba_tinny'"):
        create_segmentor("upernet", "vmamba_tinny")
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224.*strides"):
        create_segmentor("upernet", "vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="num_classes is 0"):
        create_segmentor("upernet", "test_vmamba", num_classes=0)


def test_logits_and_losses_compile_without_breaks():
    x, labels = torch.randn(2, 3, 64, 72), torch.randint(0, 3, (2, 64, 72))
    made = create_segmentor("semantic_fpn", "test_vmamba", num_classes=3, channels=8, neck_channels=8).eval()
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), made(x), rtol=1e-4, atol=1e-5)
    made = create_segmentor("upernet", "test_vmamba", num_classes=3, channels=8).eval()
    found, expected = (
        torch.compile(made.loss, backend="eager", fullgraph=True)(x, labels),
        made.loss(x, labels),
    )
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_export_for_any_batch_and_size(name):
    own = {"channels": 8, "aux_channels": 0} if name == "upernet" else {"channels": 8, "neck_channels": 8}
    made = create_segmentor(name, "test_vmamba", num_classes=3, **own).eval()
    dims = {
        0: torch.export.Dim("b", min=1),
        2: torch.export.Dim("h", min=33),
        3: torch.export.Dim("w", min=33),
    }
    program = torch.export.export(made, (torch.randn(2, 3, 64, 72),), dynamic_shapes=({**dims},)).module()
    for shape in ((1, 3, 47, 90), (2, 3, 64, 72)):
        x = torch.randn(*shape)
        torch.testing.assert_close(program(x), made(x), rtol=1e-4, atol=1e-5)
