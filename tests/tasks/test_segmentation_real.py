"""Masks of real data: CamVid's and ADE20K's, read by another way here."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ganglion.data.masks import IGNORED, MaskSource
from ganglion.tasks.segmentation.folders import open_masks

from ..real_data import real_data


@pytest.mark.parametrize(
    ("name", "split", "count", "classes", "reduce"),
    [
        ("camvid", "train", 367, 11, False),
        ("camvid", None, 101, 11, False),
        ("ade20k_sample", None, 6, 150, True),
    ],
)
def test_labels_are_what_the_files_say(name, split, count, classes, reduce):
    root = real_data(name)
    source = open_masks(str(root), split, reduce_zero_label=reduce)
    assert (len(source), source.num_classes, source.note) == (count, classes, "")
    for index in range(0, count, 25):
        image, labels = source.image(index)
        assert isinstance(image, Image.Image) and labels.shape == (image.height, image.width)
        file = source.path(index)
        mask = root / "annotations" / file.relative_to(root / "images").with_suffix(".png")
        values = np.asarray(Image.open(mask)).astype(int)
        if reduce:  # 0 wraps round to 255, as in uint8
            values = (values - 1) % 256
        assert (labels.numpy() == values).all()


def test_colours_in_place_of_labels(tmp_path):
    """CamVid's masks painted in the colours of its manifest, with these in a file of classes."""
    root = real_data("camvid")
    source = open_masks(str(root), "val", limit=3)
    rng = np.random.default_rng(0)
    palette = np.concatenate([rng.choice(256, (11, 3), replace=False), np.zeros((245, 3), int)]).astype(
        np.uint8
    )
    names = source.class_names or []
    (tmp_path / "classes.txt").write_text(
        "\n".join(f"{name} {r} {g} {b}" for name, (r, g, b) in zip(names, palette.tolist(), strict=False))
    )
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(3):
        image, labels = source.image(i)
        assert isinstance(image, Image.Image)
        image.save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(palette[labels.numpy()]).save(tmp_path / "masks" / f"{i}.png")
    painted = open_masks(str(tmp_path), None)
    assert isinstance(painted, MaskSource) and painted.class_names == names
    for i in range(3):
        assert (painted.image(i)[1] == source.image(i)[1]).all()
        assert (painted.image(i)[1] == IGNORED).any()
