"""Segmentation: label maps as they come, the published pipeline, the metric against goldens, and a whole run."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ganglion.data import Batch, DataError, UnreadableImage
from ganglion.data.mask_classes import read_mask_classes
from ganglion.data.masks import IGNORED, MaskSource
from ganglion.tasks import fit
from ganglion.tasks.segmentation.folders import open_masks
from ganglion.tasks.segmentation.metrics import SegmentationMetrics
from ganglion.tasks.segmentation.training import Segmentation
from ganglion.tasks.segmentation.transforms import (
    Augment,
    Resize,
    SegmentationAugmentation,
    _hsv,
    _rgb,
    cropped,
    nearest,
)
from ganglion.training.errors import TrainingError

from .segmentation_data import NAMES, arguments, whole

CONFIG = {"input_size": [3, 32, 128], "mean": [0.5], "std": [0.25]}


@pytest.fixture
def data(tmp_path):
    return whole(tmp_path / "data")


def source(folder, mask: Image.Image, **options) -> MaskSource:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", mask.size).save(folder / "images" / "a.jpg")
    mask.save(folder / "masks" / "a.png")
    return MaskSource(folder / "images", folder / "masks", **({"class_names": NAMES} | options))


VALUES = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)


COLOURS = [[9, 9, 9], [200, 0, 0], [1, 2, 3]]


def palette_image() -> Image.Image:
    image = Image.fromarray(VALUES, "P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0] + 759 * [7])
    return image


@pytest.mark.parametrize(
    "mask, options, expected",
    [
        (Image.fromarray(VALUES), {}, VALUES),
        (palette_image(), {}, VALUES),
        (Image.fromarray(VALUES.astype(np.uint16)), {}, VALUES),
        (Image.fromarray(np.stack([VALUES] * 3, 2)), {}, VALUES),
        (Image.fromarray(VALUES), {"reduce_zero_label": True}, [[255, 0, 1], [1, 255, 0]]),
        (Image.fromarray(VALUES), {"classes": ["car", "sky"]}, [[1, 255, 0], [0, 255, 255]]),
        (palette_image().convert("RGB"), {"colours": COLOURS}, [[0, 1, 255], [255, 255, 1]]),
        (palette_image(), {"colours": COLOURS}, [[0, 1, 255], [255, 255, 1]]),
        (palette_image().convert("RGBA"), {"colours": COLOURS}, [[0, 1, 255], [255, 255, 1]]),
        (Image.fromarray(VALUES), {"colours": COLOURS}, VALUES),
        (Image.fromarray(VALUES).convert("LA"), {}, VALUES),
    ],
)
def test_masks_of_every_form(mask, options, expected, tmp_path):
    _, labels = source(tmp_path, mask, **options).image(0)
    if "colours" in options and mask.mode != "L":  # what the palette says of 2 and 255 is no class
        labels = torch.where(labels > 1, IGNORED, labels)
    assert labels.tolist() == np.asarray(expected).tolist() and labels.dtype == torch.int64


def test_a_mask_that_is_wrong_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.png holds the labels \[7\]: expected 0 to 2 for 3 classes"):
        source(tmp_path / "1", Image.fromarray(np.full((2, 3), 7, np.uint8))).image(0)
    found = source(tmp_path / "2", Image.fromarray(VALUES))
    Image.new("RGB", (5, 4)).save(tmp_path / "2" / "images" / "a.jpg")
    with pytest.raises(DataError, match=r"a\.png has 3 x 2 pixels, its image .*a\.jpg 5 x 4"):
        found.image(0)
    colours = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
    with pytest.raises(DataError, match=r"a\.png is an image of colours"):
        source(tmp_path / "3", colours).image(0)
    with pytest.raises(DataError, match=r"a\.png has the colours 7 7 7, .*expected red, green, blue"):
        mixed = np.array([[[7, 7, 7], [8, 8, 8]]], np.uint8)
        source(tmp_path / "6", Image.fromarray(mixed), colours=COLOURS).image(0)
    with pytest.raises(DataError, match=r"a\.png holds the labels \[300\]"):
        source(tmp_path / "7", Image.fromarray(np.full((2, 3), 300, np.uint16))).image(0)
    with pytest.raises(DataError, match=r"a\.tif has values of float32: expected whole numbers"):
        found = source(tmp_path / "5", Image.fromarray(VALUES))
        (tmp_path / "5" / "masks" / "a.png").unlink()
        Image.fromarray(np.full((2, 3), 0.5, np.float32)).save(tmp_path / "5" / "masks" / "a.tif")
        MaskSource(tmp_path / "5" / "images", tmp_path / "5" / "masks", class_names=NAMES).image(0)
    with pytest.raises(DataError, match="are masks of one name"):
        source(tmp_path / "5", Image.fromarray(VALUES))
    found = source(tmp_path / "4", Image.fromarray(VALUES))
    (tmp_path / "4" / "masks" / "a.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(UnreadableImage):
        found.image(0)


def test_folders_that_are_wrong_are_named(tmp_path, data):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        open_masks(str(tmp_path / "nowhere"), "train")
    with pytest.raises(
        DataError, match=r"there is no folder .*test: expected images; in .* are images, masks"
    ):
        open_masks(str(data), "test")
    with pytest.raises(
        DataError, match=r"none of the 6 images in .* has a mask in .*: expected 0.png for 0.png"
    ):
        for file in (data / "masks" / "train").iterdir():
            file.rename(file.with_name(f"x{file.name}"))
        open_masks(str(data), "train")
    (data / "masks" / "val" / "0.png").unlink()
    assert open_masks(str(data), "val").note == "1 images without a mask"
    with pytest.raises(DataError, match=r"classes are .*'bus'.*expected some of sky, road, car"):
        open_masks(str(data), "val", classes=["bus"])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "sky\n\nroad ahead\n", (["sky", "road ahead"], None)),
        ("a.txt", "\ufeff0 sky\n1 road 2\n", (["sky", "road 2"], None)),
        ("a.txt", "sky 1 2 3\nroad ahead\t4 5 255\n", (["sky", "road ahead"], [[1, 2, 3], [4, 5, 255]])),
        ("a.txt", "0: sky, 1, 2, 3\n1: road, 4, 5, 6", (["sky", "road"], [[1, 2, 3], [4, 5, 6]])),
        (
            "a.txt",
            "64 128 64\tAnimal\n192 0 128\tArch way",
            (["Animal", "Arch way"], [[64, 128, 64], [192, 0, 128]]),
        ),
        ("a.txt", "building, edifice\n5\n", (["building, edifice", "5"], None)),
        ("a.json", '{"classes": ["a", "b"], "palette": []}', (["a", "b"], None)),
        ("a.json", '[{"name": "a"}, {"name": "b"}]', (["a", "b"], None)),
        ("a.json", '[{"name": "a", "color": [1, 2, 3]}]', (["a"], [[1, 2, 3]])),
    ],
)
def test_files_of_classes(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_mask_classes(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "\n \n", "a.txt has no class"),
        (
            "a.txt",
            "sky 1 2 3\nroad 4 5 999\n",
            "line 2: the colour of 'road' is 4 5 999: expected three whole",
        ),
        ("a.txt", "sky 1 2 3\nroad -4 5 6.5\n", "line 2: the colour of 'road' is -4 5 6.5"),
        ("a.txt", "sky 1 2 3\nroad\n", r"line 2: 'road' has no colour, and 'sky' \(line 1\) has one"),
        ("a.txt", "sky 1 2 3\nroad 1 2 3", r"line 2: the colour of 'road' is also that of 'sky' \(line 1\)"),
        ("a.txt", "sky\nroad\n\nsky", "line 4: the name of 'sky' is also that of 'sky'"),
        ("a.json", "[]", "a.json has no class"),
        ("a.json", "{", "expected a JSON list of names"),
        ("a.json", '{"0": "sky"}', "by itself or as classes"),
        ("a.json", '["a", 3]', "entry 1 is 3"),
        ("a.json", '[{"name": "a", "color": [1, 2]}]', "the colour of 'a' is 1 2"),
        ("a.json", '[{"name": "a", "color": [1, 2, 3]}, {"name": "b"}]', "entry 1: 'b' has no colour"),
    ],
)
def test_files_of_classes_that_are_wrong(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_mask_classes(tmp_path / name)


def test_layouts_of_folders(tmp_path):
    """Cityscapes, CamVid as it is published, ADE20K, no splits; the split None is the one for validation."""
    for i, (images, masks) in enumerate(
        [
            ("leftImg8bit/val", "gtFine/val"),
            ("val", "valannot"),
            ("images/validation", "annotations/validation"),
            ("images", "masks"),
        ]
    ):
        root = tmp_path / str(i)
        for folder in (images, masks):
            (root / folder).mkdir(parents=True)
            Image.fromarray(VALUES).save(root / folder / "a.png")
        found = open_masks(str(root), None, class_names=NAMES)
        assert found.path(0) == root / images / "a.png" and found.class_names == NAMES
    with pytest.raises(DataError, match=r"there is no folder .*annotations: expected the masks of .*images"):
        (root / "masks").rename(root / "m")
        open_masks(str(root), None, class_names=NAMES)


def test_cityscapes_names(tmp_path):
    for kind, ending in (("images", "_leftImg8bit"), ("masks", "_gtFine_labelTrainIds")):
        (tmp_path / kind / "val" / "town").mkdir(parents=True)
        Image.fromarray(VALUES).save(tmp_path / kind / "val" / "town" / f"a{ending}.png")
    found = MaskSource(tmp_path / "images", tmp_path / "masks", class_names=NAMES)
    assert len(found) == 1 and found.name(0) == "val/town/a_leftImg8bit.png"


def test_sizes_are_the_published():
    """512 x 2048, ratio kept, halves up; for SparX each side up to a multiple of 32."""
    config = CONFIG | {"input_size": [3, 512, 2048]}
    image = Image.new("RGB", (683, 512))
    assert Resize(config)(image, None)[0].shape == (3, 512, 683)
    assert Resize(config | {"multiple": 32})(image, None)[0].shape == (3, 512, 704)
    assert Resize(config)(Image.new("RGB", (3000, 500)), None)[0].shape == (3, 341, 2048)


def test_augmentation_moves_image_and_labels_together():
    labels = torch.zeros(40, 64, dtype=torch.long)
    labels[:, 32:] = 2
    labels[20:, :32] = 1
    colours = torch.tensor([[0, 0, 0], [100, 100, 100], [200, 200, 200]], dtype=torch.uint8)
    image = Image.fromarray(colours[labels].numpy())
    augment = Augment(CONFIG, SegmentationAugmentation(crop=48, distortion=0.0))
    sizes = set()
    for seed in range(12):
        random.seed(seed)
        pixels, found = augment(image, labels)
        assert pixels.shape == (3, 48, 48) and found.shape == (48, 48)
        sizes.add((found != IGNORED).sum().item())
        there = found != IGNORED
        nearest = ((pixels.mean(0) * 0.25 + 0.5) * 255 / 100).round().long()
        assert (nearest[there] == found[there]).float().mean() > 0.93  # but for blended edges
        assert (pixels[:, ~there] == 0).all()
    assert len(sizes) > 4


def test_a_crop_is_of_more_than_one_class_where_it_can_be():
    labels = torch.zeros(100, 100, dtype=torch.long)
    labels[:, 70:] = 1
    random.seed(0)
    mostly = [
        torch.bincount(cropped(labels[None], labels, (40, 40))[1].flatten()).max() / 1600 for _ in range(50)
    ]
    assert np.mean([share < 0.75 for share in mostly]) > 0.6


def test_hue_and_saturation_as_opencv_has_them():
    colours = torch.tensor(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 64, 32], [10, 10, 10]], dtype=torch.uint8
    )
    hue, saturation, value = _hsv(colours.T[:, None])
    assert hue[0].tolist() == [0, 60, 120, 10, 0]
    assert saturation[0].tolist() == [255, 255, 255, 191, 0] and value[0].tolist() == [255, 255, 255, 128, 10]
    assert (_rgb(hue, saturation, value).int() - colours.T[:, None].int()).abs().max() <= 1


def logits_of(labels: torch.Tensor, n: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, n).movedim(-1, -3).float()


def test_metric_by_hand_and_whatever_the_batches():
    """Class 2 is predicted but never true: IoU 0, no accuracy. Class 3 is nowhere."""
    labels = torch.tensor([[[0, 0, 1], [1, IGNORED, 0]]])
    predicted = torch.tensor([[[0, 1, 1], [1, 2, 2]]])
    metrics = SegmentationMetrics(["a", "b", "c", "d"])
    metrics.update(logits_of(predicted, 4), Batch(torch.zeros(1), labels, []))
    iou, accuracy = metrics.per_class()
    assert iou[:3].tolist() == pytest.approx([1 / 3, 2 / 3, 0]) and iou[3].isnan()
    assert accuracy[:2].tolist() == pytest.approx([1 / 3, 1]) and accuracy[2:].isnan().all()
    values = metrics.values()
    assert values == pytest.approx({"miou": 100 / 3, "macc": 200 / 3, "aacc": 60.0})
    twice = SegmentationMetrics(["a", "b", "c", "d"])
    for _ in range(2):
        twice.update([logits_of(predicted, 4)[0]], Batch(torch.zeros(1), [{"labels": labels[0]}], []))
    assert twice.values() == pytest.approx(values) and twice.reduce().images == 2
    twice.update(torch.full((1, 4, 2, 3), torch.nan), Batch(torch.zeros(1), labels, []))
    assert twice.not_finite == 1


def test_a_task_needs_no_trainer(data):
    task = Segmentation(
        "test_vmamba", name="semantic_fpn", num_classes=3, config={"neck_channels": 8, "channels": 8}
    )
    loss = task.loss(Batch(torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64)), []))
    loss.backward()
    assert loss.isfinite()


def test_a_classifier_starts_the_backbone_and_a_file_without_norms_does_not(tmp_path):
    weights = timm.create_model("test_vmamba").state_dict()
    torch.save(weights, tmp_path / "whole.pth")
    torch.save({k: v for k, v in weights.items() if "norm" not in k}, tmp_path / "less.pth")

    def task(file):
        return Segmentation(
            "test_vmamba", name="semantic_fpn", num_classes=3, initial_checkpoint=str(tmp_path / file)
        )

    network = task("whole.pth").build()
    name = next(name for name in weights if name.endswith("A_logs"))
    assert torch.equal(network.backbone.network.state_dict()[f"model.{name}"], weights[name])
    with pytest.raises(TrainingError, match=r"nor a test_vmamba: no stem.0.norm.weight"):
        task("less.pth").build()


def test_upernet_on_batches_of_one_is_refused(data, tmp_path, capsys):
    argv = arguments(data, tmp_path / "run", "--model.name", "upernet", "--model.config", "{channels: 8}")
    assert fit.main([*argv, "--data.batch_size", "1"]) != 0
    assert "data.batch_size is 1" in capsys.readouterr().err


def test_labels_are_resized_in_float64():
    """In float32, place 270 of 810 over 333 rows falls one row too low."""
    labels = torch.arange(333)[:, None]
    found = nearest(labels, (810, 1))[:, 0]
    assert found.tolist() == [i * 333 // 810 for i in range(810)]
