"""Batches of what can be read in any order: what they hold, and what replaces an unreadable image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ganglion.data import (
    DataError,
    Processes,
    Unreadable,
    UnreadableCounter,
    eval_loader,
    open_dataset,
    train_loader,
)

from .pictures import noisy, number, plain, unreadable_images, write_folder

UNREADABLE = unreadable_images()
IMAGES = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder") / "train", each=IMAGES // 2).parent


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Images 3, 4 and 19 are unreadable."""
    root = write_folder(tmp_path_factory.mktemp("damaged") / "train", each=IMAGES // 2)
    for name in ("ant/3.png", "ant/4.png", "bee/9.png"):
        (root / name).write_bytes(UNREADABLE["truncated.png"])
    return root.parent


def load(root, transform=noisy, **options):
    options = {"batch_size": 3, "seed": 4} | options
    return list(train_loader(open_dataset(root, split="train"), transform, **options))


def same(batches, expected) -> bool:
    assert len(batches) == len(expected)
    return all(torch.equal(a.images, b.images) and a[1:] != () and torch.equal(a.targets, b.targets)
               for a, b in zip(batches, expected))  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_processes_loads_the_same(folder, damaged, workers):
    for root in (folder, damaged):
        assert same(load(root, processes=Processes(workers=workers)), load(root))


def test_batches_are_a_function_of_seed_epoch_and_position(folder):
    whole = load(folder, epoch=1)
    assert len(whole) == 6 and same(load(folder, epoch=1), whole)
    assert same(load(folder, epoch=1, start_batch=4), whole[4:])
    for other in ({"epoch": 2}, {"epoch": 1, "seed": 5}):
        assert not torch.equal(load(folder, **other)[0].images, whole[0].images)
    loader = train_loader(
        open_dataset(folder, split="train"), noisy, batch_size=3, seed=4, epoch=1, start_batch=4
    )
    assert len(list(loader)) == 2 and len(loader) == 6
    loader.sampler.set_epoch(2)  # pyright: ignore
    assert same(list(loader), load(folder, epoch=2))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_side_by_side_are_one(damaged, ranks):
    """Images, augmentation and replacements."""
    shares = [
        load(damaged, batch_size=2, processes=Processes(rank=r, world_size=ranks)) for r in range(ranks)
    ]
    whole = load(damaged, batch_size=2 * ranks)
    for parts, batch in zip(zip(*shares, strict=True), whole, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)


def test_an_unreadable_image_gives_way_to_the_next(folder, damaged):
    """3 and 4 to 5, 19 to 0."""
    whole = [number(i) for batch in load(folder, plain, batch_size=20) for i in batch.images]
    (batch,) = load(damaged, plain, batch_size=20)
    assert [number(i) for i in batch.images] == [{3: 5, 4: 5, 19: 0}.get(n, n) for n in whole]
    assert batch.targets.tolist() == [int(number(i) >= 10) for i in batch.images]
    assert {b.name for b in batch.unreadable} == {"ant/3.png", "ant/4.png", "bee/9.png"}
    assert {b.reason for b in batch.unreadable} == {"image file is truncated"}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_each_image_once(damaged, ranks, workers):
    shares = [
        list(
            eval_loader(
                open_dataset(damaged, split="train"),
                plain,
                batch_size=6,
                processes=Processes(rank=r, world_size=ranks, workers=workers),
            )
        )
        for r in range(ranks)
    ]
    assert len({tuple(len(batch.images) for batch in share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    seen = [number(i) for b in batches for i, t in zip(b.images, b.targets) if t >= 0]
    assert sorted(seen) == sorted(set(range(IMAGES)) - {3, 4, 19})
    assert sorted(b.name for batch in batches for b in batch.unreadable) == [
        "ant/3.png",
        "ant/4.png",
        "bee/9.png",
    ]


@pytest.mark.parametrize("channels", [3, 13])
def test_a_batch_of_nothing_has_the_shape_of_the_others(tmp_path, channels):
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i in range(2):
        (tmp_path / "train" / "a" / (f"{i}.png" if channels == 3 else f"{i}.npy")).write_bytes(b"")
    loader = eval_loader(open_dataset(tmp_path, split="train", channels=channels), plain, batch_size=2)
    (batch,) = loader
    assert batch.images.shape == (2, channels, 64, 64) and not batch.images.any()
    assert batch.targets.tolist() == [-1, -1] and len(batch.unreadable) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable(tmp_path, workers):
    """The same words from a loader process, without its traceback."""
    for i in range(3):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "a" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError) as error:
        load(tmp_path, batch_size=1, processes=Processes(workers=workers))
    said = str(error.value)
    assert said.startswith("none of the 3 images can be read; a/") and said.endswith("empty, or not an image")


def test_forked_processes_do_not_share_a_tar_file(folder, tmp_path):
    """Opened before they begin, it would have one position for all of them."""
    import tarfile

    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(folder / "train", "")
    source = open_dataset(tmp_path / "all.tar", split="")
    source.image(0)  # pyright: ignore
    expected = load(folder, batch_size=1)
    for _ in range(2):
        found = list(train_loader(source, noisy, batch_size=1, seed=4, processes=Processes(workers=2)))
        assert same(found, expected) and not any(batch.unreadable for batch in found)


def test_counter():
    counter = UnreadableCounter(0.1)
    for _ in range(3):  # met in every epoch
        counter.add([Unreadable("a", "empty"), Unreadable("b", "truncated")])
    assert len(counter) == 2
    counter.check(20)
    with pytest.raises(
        DataError, match=r"2 of 19 images \(10.53%\) cannot be used, more than the allowed 10.00%"
    ):
        counter.check(19)
    counter.add(Unreadable(f"{n}", "empty") for n in range(3))
    assert counter.report(2) == "5 unreadable images\n  a: empty\n  b: truncated\n  and 3 more"


def test_numpy_and_python_generators_are_seeded(folder):
    """`noisy` draws from all of them; without seeds of their own, two loads would differ."""
    np.random.seed(None)  # noqa: NPY002
    assert same(load(folder), load(folder))
