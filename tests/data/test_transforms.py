"""Transforms against timm's and against what they say of themselves."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from ganglion.data import Augmentation, DataError, eval_transform, train_transform

CONFIG = {
    "input_size": (3, 24, 24),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.9,
    "crop_mode": "center",
}
#: Everything that draws random numbers.
STRONG = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5, "vflip": 0.5}


def config(channels: int = 3, **others) -> dict:
    return CONFIG | {"input_size": (channels, 24, 24)} | others


def image(channels: int = 3, side: tuple[int, int] = (40, 31)) -> Image.Image | torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (*side, channels), np.uint8)
    if channels in (1, 3, 4):
        return Image.fromarray(pixels.squeeze())
    return torch.from_numpy(pixels).permute(2, 0, 1)


def seeded(transform, picture, seed: int) -> torch.Tensor:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    return transform(picture)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_is_timms(crop_mode, interpolation):
    ours = config(crop_mode=crop_mode, interpolation=interpolation)
    theirs = create_transform(
        CONFIG["input_size"], interpolation=interpolation, mean=CONFIG["mean"], std=CONFIG["std"],
        crop_pct=0.9, crop_mode=crop_mode,
    )  # fmt: skip
    assert torch.equal(eval_transform(ours)(image()), theirs(image()))


def test_another_size():
    found = eval_transform(config(), 32)(image())
    larger = eval_transform(config() | {"input_size": (3, 32, 32)})(image())
    assert found.shape == (3, 32, 32) and torch.equal(found, larger)


@pytest.mark.parametrize("channels", [1, 4])
def test_statistics_of_other_channels(channels):
    """One mean and std for all channels: the average of those for colours."""
    mean, std = sum(CONFIG["mean"]) / 3, sum(CONFIG["std"]) / 3
    grey = Image.new({1: "L", 4: "RGBA"}[channels], (24, 24), (51,) * channels)
    found = eval_transform(config(channels, crop_pct=1.0))(grey)
    torch.testing.assert_close(found, torch.full((channels, 24, 24), (0.2 - mean) / std))


def test_thirteen_channels_are_treated_as_pictures_are():
    """Three channels of thirteen come out as those three would by themselves, to the rounding of pixels."""
    own = {"mean": tuple(i / 26 for i in range(13)), "std": (0.2,) * 13, "interpolation": "bilinear"}
    many = image(13)
    found = eval_transform(config(13, **own))(many)
    three = Image.fromarray(many[4:7].permute(1, 2, 0).numpy())
    config3 = config(mean=own["mean"][4:7], std=(0.2,) * 3, interpolation="bilinear")
    assert found.shape == (13, 24, 24) and found.dtype == torch.float32
    torch.testing.assert_close(found[4:7], eval_transform(config3)(three), atol=1.5 / 255 / 0.2, rtol=0)
    assert eval_transform(config(13), 16)(many).shape == (13, 16, 16)


@pytest.mark.parametrize("crop", ["rrc", "rkrc", "rkrr", "pad"])
@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_training_is_a_function_of_the_seed(channels, crop):
    strong = STRONG if channels in (1, 3) else STRONG | {"auto_augment": None}
    transform = train_transform(Augmentation(crop=crop, **strong), config(channels))
    first, again, other = (seeded(transform, image(channels), seed) for seed in (1, 1, 2))
    assert first.shape == (channels, 24, 24) and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_training_without_augmentation_is_a_crop():
    """Of an image of the right size nothing but the normalisation is left."""
    nothing = {"hflip": 0, "scale": (1, 1), "ratio": (1, 1)}
    picture = image(side=(24, 24))
    expected = eval_transform(config(crop_pct=1.0))(picture)
    for crop in ("rrc", "pad"):
        transform = train_transform(Augmentation(crop=crop, pad=0, **nothing), config())
        torch.testing.assert_close(seeded(transform, picture, 0), expected)


def test_padded_crops_hold_the_image():
    """Each is the image moved by up to 4 pixels in each direction, flipped or not, with zeros around it."""
    plain = config(mean=(0.0,) * 3, std=(1 / 255,) * 3)
    transform = train_transform(Augmentation(crop="pad", pad=4), plain)
    picture = image(side=(24, 24))
    pixels = np.pad(np.asarray(picture), ((4, 4), (4, 4), (0, 0))).transpose(2, 0, 1)
    places = {
        (flip, y, x): pixels[:, y : y + 24, x : x + 24][..., :: -1 if flip else 1].tobytes()
        for flip in (0, 1) for y in range(9) for x in range(9)
    }  # fmt: skip
    known = {content: place for place, content in places.items()}
    met = [
        known[seeded(transform, picture, seed).round().numpy().astype(np.uint8).tobytes()]
        for seed in range(200)
    ]
    for axis, values in enumerate(((0, 1), range(9), range(9))):
        assert {place[axis] for place in met} == set(values)


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5-inc1", "rand-m10-mstd3-inc1", "v0", "augmix-m5-w2", "3a"]
)
@pytest.mark.parametrize("crop", ["rrc", "pad"])
def test_policies_at_full_strength(policy, crop):
    """timm's own posterization may ask for no bit at all, which is an error."""
    transform = train_transform(Augmentation(auto_augment=policy, crop=crop), config())
    for seed in range(150):
        assert seeded(transform, image(), seed).isfinite().all()


@pytest.mark.parametrize(
    ("channels", "change", "said"),
    [
        (13, {"auto_augment": "rand-m9"}, "need 1, 3 or 4 channels, these images have 13"),
        (13, {"color_jitter": 0.4}, "need 1, 3 or 4 channels, these images have 13"),
        (4, {"auto_augment": "rand-m9"}, "needs 1 or 3 channels, not the 4"),
    ],
)
def test_what_needs_colours(channels, change, said):
    with pytest.raises(DataError, match=re.escape(said)):
        train_transform(Augmentation(**change), config(channels))


@pytest.mark.parametrize("wrong", [{"crop": "centre"}, {"hflip": 1.5}, {"re_prob": -1}])
def test_wrong_augmentation(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("foo", "unknown policy 'foo'. Valid: 3a, augmix, original, originalr, rand, v0, v0r"),
        ("rnd-m9", "Did you mean 'rand'"),
        ("", "unknown policy ''"),
        (
            "rand-m9-mtd0.5",
            "unknown setting 'mtd0.5'. Expected settings of rand with their numbers: m, n, p, mstd",
        ),
        ("rand-m9-mstd", "unknown setting 'mstd'"),  # timm leaves it out without a word
        ("rand-tfoo", "unknown setting 'tfoo'.*or just tweights"),
        ("rand-m9-inc1-", "unknown setting ''"),
        ("rand-m9.5", "invalid literal"),
        ("augmix-n3", "unknown setting 'n3'"),
        ("original-m9", "unknown setting 'm9'"),
    ],
)
def test_unknown_policies(policy, said):
    with pytest.raises(ValueError, match=rf"^Augmentation\.auto_augment is {policy!r}: .*{said}"):
        Augmentation(auto_augment=policy)


@pytest.mark.parametrize(
    "policy",
    [
        "rand-m9-mstd0.5-inc1",
        "rand-n3-p0.7-mmax20",
        "rand-mstd1-tweights",
        "augmix-m5-w4-d2-a1-b1",
        "v0r-mstd0.5",
        "3a",
    ],
)
def test_known_policies(policy):
    found = seeded(train_transform(Augmentation(auto_augment=policy), CONFIG), image(), 0)
    assert found.shape == (3, 24, 24) and found.isfinite().all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pad", -1), ("hflip", 1.5), ("re_prob", -0.1), ("re_count", 0), ("color_jitter", -1), ("scale", (0, 1)),
        ("scale", (0.5, 1.5)), ("scale", (0.9, 0.5)), ("ratio", (0, 1)), ("ratio", (2, 1)),
    ],
)  # fmt: skip
def test_numbers_out_of_range(field, value):
    with pytest.raises(ValueError, match=rf"Augmentation\.{field} is .*: expected"):
        Augmentation(**{field: value})


@pytest.mark.parametrize("channels", [3, 13])
@pytest.mark.parametrize("upright", [False, True])
def test_long_and_narrow_images_are_cut(channels, upright):
    """Resized whole, this one would have 26 times 2.6 million pixels; its middle comes out as it would have."""
    line = torch.linspace(0, 255, 100_001).byte().expand(channels, 1, -1)
    line = line.mT if upright else line
    found = eval_transform(config(channels, mean=(0.5,) * channels, std=(0.5,) * channels))
    picture = Image.fromarray(line.permute(1, 2, 0).numpy()) if channels == 3 else line
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ganglion.data.transforms.MAX_PIXELS", 1_000_000)
        cut = found(picture)
    assert cut.shape == (channels, 24, 24)
    torch.testing.assert_close(cut, torch.zeros_like(cut), atol=0.02, rtol=0)  # 127 and 128


def test_other_images_are_not_cut():
    theirs = create_transform(CONFIG["input_size"], interpolation="bicubic", crop_pct=0.9)
    for side in ((400, 30), (30, 400)):
        assert torch.equal(eval_transform(CONFIG)(image(side=side)), theirs(image(side=side)))
