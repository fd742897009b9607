"""COCO's JSON: what is read, what is left out and counted, and what is refused with the reason."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from ganglion.data import CocoSource, DataError, UnreadableImage
from ganglion.data.coco_masks import wrong_counts


def content() -> dict:
    """Three images of 40 x 30 and one of 1 x 1; categories 1, 3, 7."""
    images = [{"id": 10 * i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(3)]
    images.append({"id": 99, "file_name": "dot.png", "width": 1, "height": 1})
    return {
        "images": images,
        "categories": [{"id": 7, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 3, "name": "cow"}],
        "annotations": [
            box(1, 0, 7, [4, 5, 10, 12]),
            box(2, 0, 1, [0, 0, 5, 6], iscrowd=1),
            box(3, 10, 3, [20, 3, 15, 20]),
            box(4, 99, 1, [0, 0, 1, 1]),
        ],
    }


def box(key, image, category, bbox, **more):
    x, y, w, h = bbox
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {
        "id": key, "image_id": image, "category_id": category, "bbox": bbox, "area": w * h, "iscrowd": 0,
        "segmentation": polygon,
    } | more  # fmt: skip


@pytest.fixture
def source(tmp_path):
    for entry in content()["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(tmp_path / entry["file_name"])

    def make(found, **options):
        file = tmp_path / "instances.json"
        file.write_text(found if isinstance(found, str) else json.dumps(found))
        return CocoSource(file, tmp_path, **options)

    return make


def test_labels_follow_the_sorted_ids(source):
    found = source(content())
    assert found.class_names == ["dog", "cow", "cat"]
    assert found.category_ids == [1, 3, 7]
    assert len(found) == 4
    assert found.note == ""
    _, target = found.image(0)
    assert target["size"] == (30, 40)
    assert [(a["label"], a["iscrowd"]) for a in target["annotations"]] == [(2, 0), (0, 1)]


def test_training_leaves_out_images_without_objects_and_small_ones(source):
    more = content()
    for image in more["images"][:3]:
        image["width"] = image["height"] = 40
    found = source(more, training=True)
    assert [found.name(i) for i in range(len(found))] == ["0.png", "1.png"]
    assert found.note == "1 images without objects, 1 images with a side below 32 pixels"


def test_a_subset_of_the_classes_in_any_order(source):
    found = source(content(), classes=["cat", "dog"])
    assert found.category_ids == [7, 1]
    assert [a["label"] for a in found.image(0)[1]["annotations"]] == [0, 1]
    assert found.image(1)[1]["annotations"] == []
    with pytest.raises(DataError, match=r"'cta'.*'cat'"):
        source(content(), classes=["cta"])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (box(1, 10, 3, [1, 1, 9, 9]), "annotations with an id that another one has"),
        (box(5, 55, 3, [1, 1, 9, 9]), "annotations of images that the file does not have"),
        (box(5, 10, 2, [1, 1, 9, 9]), "annotations of categories that the file does not have"),
        (box(5, 10, 3, [1, 1, 0.5, 9]), "boxes of less than a pixel"),
        (box(5, 10, 3, [50, 1, 9, 9]), "boxes outside of their image"),
        (box(5, 10, 3, [1, 1, 9, 9], segmentation=[]), "objects without a mask, whose box is taken for it"),
    ],
)
def test_what_is_left_out_is_counted(source, entry, said):
    found = content()
    found["annotations"].append(entry)
    assert source(found).note == f"1 {said}"


def test_an_image_twice_is_counted(source):
    found = content()
    found["images"].append(found["images"][0])
    assert source(found).note == "1 images with an id that another one has"
    assert len(source(found)) == 4


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("<annotation/>", "XML, as of Pascal VOC"),
        ("0 0.5 0.5 0.2 0.1\n", "of YOLO"),
        ("{", "no JSON"),
        ([{"image_id": 1, "score": 0.5, "bbox": [0, 0, 1, 1]}], "COCO's results"),
        ({"shapes": []}, "of labelme"),
        ({"_via_img_metadata": {}}, "VGG"),
        ({"type": "FeatureCollection", "features": []}, "GeoJSON"),
        ({"images": [], "annotations": [{"caption": "a"}]}, "captions"),
        ({"images": [], "categories": [], "annotations": [{"segments_info": []}]}, "panoptic"),
        ({"images": [], "annotations": []}, "without categories"),
        ("", "is empty"),
        ("file,width,height,class\na.png,1,1,cat\n", "a table of values between commas"),
        ('{"image": "a"}\n{"image": "b"}\n', "JSON objects, one a line"),
        ([{"image": "a.png", "annotations": []}], "CreateML"),
        ({"a.png1": {"filename": "a.png", "regions": []}}, "VIA"),
        ({"images": [{"id": 1, "coco_url": "http://a"}], "annotations": [], "categories": []}, "LVIS"),
    ],
)
def test_another_format_is_named(source, found, said):
    with pytest.raises(DataError, match=said) as error:
        source(found)
    assert "instances.json" in str(error.value)


RUNS = {"size": [30, 40], "counts": [100, 5, 1095]}


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("abc", "segmentation is abc: expected polygons"),
        (5, "segmentation is 5"),
        ([1, 2, 3, 4, 5, 6], "expected polygons"),
        ([["1", "2", "3", "4", "5", "6"]], "expected numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers"),
        ([[1, float("nan"), 3, 4, 5, 6]], "expected finite numbers"),
        ([[1e12, 2, 3, 4, 5, 6]], "within the image"),
        ({"points": []}, "expected polygons"),
        (RUNS | {"size": [40, 30]}, "expected that of its image"),
        (RUNS | {"counts": [100, -5, 1105]}, "at least 0"),
        (RUNS | {"counts": [100, 5]}, "of 105 pixels: expected 1200"),
    ],
)
def test_a_wrong_mask_is_named_with_its_entry(source, mask, said):
    """Before training, and before a library is given what would make it read memory that is not its own."""
    found = content()
    found["annotations"][2]["segmentation"] = mask
    with pytest.raises(DataError, match=said) as error:
        source(found)
    assert "instances.json: annotations[2] (id 3)" in str(error.value)


def test_masks_of_every_kind_are_taken(source):
    found = content()
    found["annotations"][0]["segmentation"] = [[1, 2, 3, 4], [4, 5, 14, 5, 14, 17]]
    found["annotations"][2]["segmentation"] = RUNS
    made = source(found)
    assert made.image(0)[1]["annotations"][0]["segmentation"] == [
        [4, 5, 14, 5, 14, 17]
    ]  # two corners are no polygon
    assert made.image(1)[1]["annotations"][0]["segmentation"] == RUNS


def test_compressed_run_lengths_are_checked(source):
    """As pycocotools compresses them; what is none makes its image unreadable, with the reason."""
    import numpy as np
    from pycocotools import mask as coco

    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        made = coco.encode(np.asfortranarray((rng.random((30, 40)) < share).astype(np.uint8)))
        assert wrong_counts(made, 30, 40) == ""
        assert "of 1200 pixels: expected 1230" in wrong_counts(made, 30, 41)
    found = content()
    for counts in ("~~~", "!", "o"):
        found["annotations"][2]["segmentation"] = RUNS | {"counts": counts}
        with pytest.raises(UnreadableImage, match=r"instances.json number 0: the mask's"):
            source(found).image(1)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("images", {"id": [1]}, "images[1]"),
        ("images", {"file_name": None}, "images[1]"),
        ("images", {"height": 0}, "images[1]"),
        ("annotations", {"image_id": [1]}, "annotations[1]"),
        ("annotations", {"area": "big"}, "annotations[1]"),
        ("annotations", {"iscrowd": "yes"}, "annotations[1]"),
        ("annotations", {"bbox": [1, 2, 3]}, "annotations[1]"),
        ("categories", {"name": "cat"}, "the categories 1, 7 are all called 'cat'"),
    ],
)
def test_a_wrong_entry_is_named(source, part, changes, said):
    found = content()
    found[part][1] |= changes
    with pytest.raises(DataError) as error:
        source(found)
    assert said in str(error.value)


def test_no_categories(source):
    with pytest.raises(DataError, match="categories is empty"):
        source(content() | {"categories": []})


def test_corners_in_place_of_sides(source):
    found = content()
    found["annotations"] = [entry for entry in found["annotations"] if entry["id"] in (1, 3)]
    for entry in found["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x, y, x + w, y + h]
    with pytest.raises(DataError, match="2 of 2 boxes look like x0, y0, x1, y1"):
        source(found)


def test_files_that_are_missing_or_of_another_size(source, tmp_path):
    found = source(content())
    (tmp_path / "1.png").unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        found.image(1)
    Image.new("RGB", (41, 30)).save(tmp_path / "2.png")
    with pytest.raises(UnreadableImage, match="41 x 30 pixels, and 40 x 30 in instances"):
        found.image(2)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 4 images"):
        source(content())


def test_paths_outside_of_the_folder_are_refused(source):
    found = content()
    found["images"][0]["file_name"] = "../../etc/passwd"
    with pytest.raises(DataError, match=r"images\[0\] has the file"):
        source(found)


def test_no_annotated_image_left(source):
    with pytest.raises(DataError, match="no annotated image"):
        source(content() | {"annotations": []}, training=True)
