"""Hugging Face's datasets from local files, in memory and as streams. Needs the package `datasets`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ganglion.data import DataError, Processes, UnreadableImage, eval_loader, open_dataset, train_loader

from .pictures import (
    encode,
    noisy,
    number,
    odd_pictures,
    opened,
    picture,
    plain,
    unreadable_images,
    write_folder,
)

datasets = pytest.importorskip(
    "datasets", reason="HUGGING FACE DATASETS ARE NOT TESTED: pip install 'ganglion[hub]'"
)

LENGTHS = (5, 4, 6)
IMAGES = sum(LENGTHS)
NAMES = ["ant", "bee", "cat", "dog"]
UNREADABLE = unreadable_images()


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def write_parquet(folder, files, named: bool = True):
    """Files of encoded images; the n-th image has the label n modulo 4."""
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=NAMES) if named else datasets.Value("int64")
    )
    n = 0
    folder.mkdir(parents=True, exist_ok=True)
    for i, contents in enumerate(files):
        images = [{"bytes": content, "path": f"{n + j:04d}.png"} for j, content in enumerate(contents)]
        rows = {"image": images, "label": [(n + j) % 4 for j in range(len(contents))]}
        n += len(contents)
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(str(folder / f"train-{i:05d}-of-{len(files):05d}.parquet"))
    return folder


def files() -> list[list[bytes]]:
    numbers = iter(range(IMAGES))
    return [[encode(picture(next(numbers))) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("hub") / "data", files())


def source(root, kind: str = "hfids", cache: str = "cache", **options):
    if kind == "hfids":
        options = {"num_samples": IMAGES} | options
    return open_dataset(root.parent / cache, reader=f"{kind}/{root}", split="train", **options)


def seen(batches) -> list[int]:
    return sorted(number(i) for b in batches for i, t in zip(b.images, b.targets) if t >= 0)


def test_in_memory(root):
    found = source(root, "hfds")
    assert len(found) == IMAGES and found.class_names == NAMES and found.num_classes == 4
    assert seen(eval_loader(found, plain, batch_size=4)) == list(range(IMAGES))
    assert [found.image(i)[1] for i in range(5)] == [0, 1, 2, 3, 0]
    renumbered = source(root, "hfds", class_map={"dog": 0, "cat": 1, "bee": 2, "ant": 3})
    assert [renumbered.image(i)[1] for i in range(5)] == [3, 2, 1, 0, 3]


def test_labels_without_names(tmp_path):
    found = source(write_parquet(tmp_path / "data", files(), named=False), "hfds")
    assert found.class_names is None and found.num_classes == 4


def test_image_folder(tmp_path):
    """Files beside each other, as the package reads them; decoded here."""
    write_folder(tmp_path / "data" / "train", each=2)
    (tmp_path / "data" / "train" / "ant" / "2.jpg").write_bytes(UNREADABLE["truncated.jpg"])
    memory = source(tmp_path / "data", "hfds")
    assert memory.class_names == ["ant", "bee"] and len(memory) == 5
    unreadable = [b for batch in eval_loader(memory, plain, batch_size=5) for b in batch.unreadable]
    assert len(unreadable) == 1 and unreadable[0].name.startswith("row ") and "2.jpg" in unreadable[0].name
    stream = source(tmp_path / "data", num_samples=5)
    assert stream.class_names == ["ant", "bee"]
    batches = list(eval_loader(stream, plain, batch_size=5))
    assert seen(batches) == [0, 1, 2, 3]
    assert [b.name.endswith("ant/2.jpg") for b in batches[0].unreadable] == [True]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_evaluation_sees_each_image_once(root, ranks, workers):
    shares = [
        list(
            eval_loader(
                source(root),
                plain,
                batch_size=4,
                processes=Processes(rank=r, world_size=ranks, workers=workers),
            )
        )
        for r in range(ranks)
    ]
    assert len({len(share) for share in shares}) == 1
    everything = [batch for share in shares for batch in share]
    assert seen(everything) == list(range(IMAGES))
    for batch in everything:
        assert all(t == -1 or t == number(i) % 4 for i, t in zip(batch.images, batch.targets))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resumed_stream_goes_on_where_it_was(root, workers):
    def batches(epoch, start=0):
        loader = train_loader(
            source(root, training=True), noisy, batch_size=2, seed=5, epoch=epoch, start_batch=start,
            processes=Processes(workers=workers),
        )  # fmt: skip
        return [(batch.images, batch.targets) for batch in loader]

    whole = batches(epoch=1)
    assert len(whole) == 7
    rest = batches(1, start=3)
    for (images, targets), (expected, expected_targets) in zip(rest, whole[3:], strict=True):
        assert torch.equal(images, expected) and torch.equal(targets, expected_targets)
    assert not torch.equal(whole[0][0], batches(2)[0][0])


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_training_workers_share_nothing(root, workers):
    """As many workers as files, more, or fewer: together they read everything before anything again."""
    stream = source(root, training=True)
    shares = []
    for worker in range(workers):
        records, share = stream.training(worker, workers, 0, 3), []
        while (name := next(records).name) not in share:
            share.append(name)
        shares.append(share)
    assert sorted(name for share in shares for name in share) == [f"{n:04d}.png" for n in range(IMAGES)]
    assert shares[0] != sorted(shares[0])
    if workers == 3:  # a file for each
        assert sorted(map(len, shares)) == sorted(LENGTHS)


def test_pictures_are_those_of_a_folder(tmp_path):
    odd = odd_pictures()
    root = write_parquet(tmp_path / "data", [list(odd.values())])
    stream, memory = source(root, num_samples=len(odd)), source(root, "hfds")
    records = list(stream.evaluation(0, 1))
    for i, (record, (name, content)) in enumerate(zip(records, odd.items(), strict=True)):
        assert np.array_equal(np.asarray(stream.decode(record)[0]), opened(content)), name
        assert np.array_equal(np.asarray(memory.image(i)[0]), opened(content)), name


def with_unreadable(folder):
    contents = files()
    contents[0][1], contents[1][0], contents[2][5] = UNREADABLE["truncated.png"], b"", UNREADABLE["text.jpg"]
    return write_parquet(folder, contents)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_in_a_stream(tmp_path, workers):
    root = with_unreadable(tmp_path / "data")
    batches = list(eval_loader(source(root), plain, batch_size=4, processes=Processes(workers=workers)))
    assert seen(batches) == sorted(set(range(IMAGES)) - {1, 5, 14})
    assert sorted(b.name for batch in batches for b in batch.unreadable) == [
        "0001.png",
        "0005.png",
        "0014.png",
    ]
    trained = list(
        train_loader(
            source(root, training=True), plain, batch_size=3, seed=0, processes=Processes(workers=workers)
        )
    )
    assert len(trained) == 5 and len(seen(trained)) == IMAGES
    if not workers:
        assert {b.name for batch in trained for b in batch.unreadable} == {"0001.png", "0005.png", "0014.png"}


def test_unreadable_in_memory(tmp_path):
    found = source(with_unreadable(tmp_path / "data"), "hfds")
    assert seen(eval_loader(found, plain, batch_size=4)) == sorted(set(range(IMAGES)) - {1, 5, 14})
    with pytest.raises(UnreadableImage):
        found.image(5)
    assert found.name(5) == "row 5 (0005.png)"


def test_names_and_limits(root):
    stream = source(root)
    assert stream.class_names == NAMES and stream.num_classes == 4
    turned = source(root, class_map={name: 3 - i for i, name in enumerate(NAMES)})
    assert [record.label for record in turned.evaluation(0, 1)][:5] == [3, 2, 1, 0, 3]
    assert turned.class_names == NAMES[::-1]
    assert seen(eval_loader(source(root, limit=6), plain, batch_size=4)) == list(range(6))
    with pytest.raises(DataError, match=r"not among those known.*: bee, cat, dog$"):
        source(root, class_map={"ant": 0})
    with pytest.raises(DataError, match=r"data.num_samples"):
        source(root, limit=6, training=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"num_samples": None}, "length is unknown"), ({"channels": 13}, "1, 3 or 4 channels")],
)
def test_what_cannot_be_opened(root, options, said):
    with pytest.raises(DataError, match=said):
        source(root, cache="nothing known", **options)


def test_no_such_data_or_column(tmp_path):
    for kind in ("hfds", "hfids"):
        with pytest.raises(DataError, match=f"timm cannot read {kind}/"):
            source(tmp_path / "nothing", kind)
    folder = tmp_path / "data"
    folder.mkdir()
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(str(folder / "train.parquet"))
    with pytest.raises(DataError, match=r"unknown column 'image'. Valid: label, text"):
        source(folder)
    with pytest.raises(UnreadableImage):
        source(folder, "hfds").image(0)
