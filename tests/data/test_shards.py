"""WebDataset shards: who reads what, in which order, and what becomes of what cannot be read."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch

from ganglion.data import DataError, ImageTransform, Processes, eval_loader, open_dataset, train_loader
from ganglion.data.stream import ShardSource

from .pictures import (
    encode,
    noisy,
    number,
    numbered,
    odd_pictures,
    opened,
    picture,
    plain,
    unreadable_images,
    write_shards,
)

LENGTHS = (7, 3, 9, 6, 8, 5)  # 38 images
UNREADABLE = unreadable_images()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_shards(
        tmp_path_factory.mktemp("shards"), {"train": numbered(LENGTHS), "val": numbered([4, 1])}
    )


def source(root, split: str = "train", **options) -> ShardSource:
    found = open_dataset(root, reader="wds/", split=split, **options)
    assert isinstance(found, ShardSource)
    found._held = 4, 6  # buffers that do not hold everything at once
    return found


def numbers(loader) -> list[list[int]]:
    """Of the images of every batch that count."""
    return [
        [number(image) for image, target in zip(batch.images, batch.targets) if target >= 0]
        for batch in loader
    ]


def seen(loader) -> list[int]:
    return sorted(n for batch in numbers(loader) for n in batch)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_each_image_once(root, ranks, workers):
    """... and all ranks get equally many batches, or they would wait for each other."""
    for split, images in (("train", 38), ("val", 5)):
        loaders = [
            eval_loader(
                source(root, split),
                plain,
                batch_size=4,
                processes=Processes(rank=r, world_size=ranks, workers=workers),
            )
            for r in range(ranks)
        ]
        assert len({len(loader) for loader in loaders}) == 1
        batches = [list(loader) for loader in loaders]
        assert {len(share) for share in batches} == {len(loaders[0])}
        everything = [b for share in batches for b in share]
        assert seen(everything) == list(range(images))
        for batch in everything:
            assert batch.unreadable == []
            for image, target in zip(batch.images, batch.targets):
                assert target == -1 or target == number(image) % 4


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resumed_stream_goes_on_where_it_was(root, workers):
    def batches(epoch, start=0):
        loader = train_loader(
            source(root),
            noisy,
            batch_size=3,
            seed=5,
            epoch=epoch,
            start_batch=start,
            processes=Processes(workers=workers),
        )
        assert len(loader) == 12
        return [(batch.images, batch.targets) for batch in loader]

    whole = batches(epoch=1)
    assert len(whole) == 12
    for start in (1, 5, 12):
        rest = batches(1, start)
        assert len(rest) == 12 - start
        for (images, targets), (expected, expected_targets) in zip(rest, whole[start:], strict=True):
            assert torch.equal(images, expected) and torch.equal(targets, expected_targets)
    assert not torch.equal(whole[0][0], batches(2)[0][0])


def test_next_epoch_of_a_resumed_loader(root):
    options = {"batch_size": 3, "seed": 5}
    resumed = train_loader(source(root), plain, epoch=1, start_batch=5, **options)
    resumed.sampler.set_epoch(1)
    assert len(numbers(resumed)) == 7
    resumed.sampler.set_epoch(2)
    assert numbers(resumed) == numbers(train_loader(source(root), plain, epoch=2, **options))


def test_order_changes_with_seed_and_epoch(root):
    def order(seed, epoch):
        return numbers(train_loader(source(root), plain, batch_size=3, seed=seed, epoch=epoch))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0) and order(0, 0) != order(0, 1)
    one_shard = next(iter(order(0, 0)))
    assert one_shard != sorted(one_shard)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_training_workers_share_nothing(root, ranks, workers):
    """Every process has shards of its own; together they read all of them."""
    total = ranks * max(1, workers)
    stream = source(root)
    whose: dict[int, int] = {}
    for worker in range(total):
        records = stream.training(worker, total, 0, 3)
        for record in (next(records) for _ in range(60)):
            n = number(plain(stream.decode(record)[0]))
            assert whose.setdefault(n, worker) == worker
    assert sorted(whose) == list(range(38))
    batches = [
        numbers(
            train_loader(
                source(root),
                plain,
                batch_size=2,
                seed=0,
                processes=Processes(rank=r, world_size=ranks, workers=workers),
            )
        )
        for r in range(ranks)
    ]
    assert {len(b) for b in batches} == {38 // (2 * ranks)}
    assert all(len(batch) == 2 for share in batches for batch in share)


def test_shards_change_hands_between_epochs(root):
    stream = source(root)
    parts = set()
    for epoch in range(6):
        records = stream.training(0, 2, 0, epoch)
        parts.add(frozenset(next(records).name.partition("/")[0] for _ in range(20)))
    assert len(parts) > 2


@ImageTransform
def only_noise(image) -> torch.Tensor:
    return torch.rand(1, 1, 1)


def test_augmentation_differs_between_images_epochs_and_ranks(root):
    drawn: list[float] = []
    for position in ({"epoch": 0}, {"epoch": 1}, {"seed": 1}, {"rank": 1}, {"workers": 2}):
        processes = Processes(world_size=2, rank=position.pop("rank", 0), workers=position.pop("workers", 0))
        options = {"batch_size": 3, "seed": 0, "processes": processes} | position
        loader = train_loader(source(root), only_noise, **options)
        drawn += [v for batch in loader for v in batch.images.flatten().tolist()]
    # The first process of rank 0 is the same worker, however many others there are.
    assert len(drawn) == 5 * 18 and len(set(drawn)) >= 4 * 18


def test_an_epoch_of_one_process_is_each_image_once(root):
    for epoch in range(3):
        loader = train_loader(source(root), plain, batch_size=2, seed=0, epoch=epoch)
        assert seen(loader) == list(range(38))


def test_too_few_shards(root):
    loader = {"transform": plain, "batch_size": 1, "seed": 0}
    train_loader(source(root), processes=Processes(world_size=2, workers=3), **loader)
    with pytest.raises(DataError, match=r"6 shards for 2 devices with 4 .* Expected at most 3 data.workers"):
        train_loader(source(root), processes=Processes(world_size=2, workers=4), **loader)
    with pytest.raises(DataError, match=r"6 shards for 7 devices with 1 .* Expected at least 7 shards"):
        train_loader(source(root), processes=Processes(world_size=7, workers=0), **loader)
    eval_loader(
        source(root), plain, batch_size=1, processes=Processes(world_size=7, workers=4)
    )  # there it does not matter


def test_pictures_are_those_of_a_folder(tmp_path):
    """timm's reader would cut off 16 bits, leave a photograph lying on its side, and skip some of these."""
    odd = odd_pictures()
    contents = [(name.rpartition(".")[2], content) for name, content in odd.items()]
    stream = source(write_shards(tmp_path, {"val": [contents]}), "val")
    found = [stream.decode(record)[0] for record in stream.evaluation(0, 1)]
    for image, (name, content) in zip(found, odd.items(), strict=True):
        assert np.array_equal(np.asarray(image), opened(content)), name


def with_unreadable(root):
    shards = numbered(LENGTHS)
    shards[0][1] = UNREADABLE["truncated.png"]
    shards[2][8] = UNREADABLE["empty.jpg"]  # the last of its shard
    shards[3] = [UNREADABLE["text.jpg"]] * 6
    return write_shards(root, {"train": shards, "val": shards})


UNREADABLE_NAMES = {f"{{}}-0.tar/{1:04d}", f"{{}}-2.tar/{18:04d}"} | {
    f"{{}}-3.tar/{n:04d}" for n in range(19, 25)
}
BROKEN_NUMBERS = {1, 18, *range(19, 25)}


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_in_evaluation(tmp_path, workers):
    batches = list(
        eval_loader(
            source(with_unreadable(tmp_path), "val"),
            plain,
            batch_size=4,
            processes=Processes(workers=workers),
        )
    )
    assert seen(batches) == sorted(set(range(38)) - BROKEN_NUMBERS)
    unreadable = [b for batch in batches for b in batch.unreadable]
    assert sorted(b.name for b in unreadable) == sorted(name.format("val") for name in UNREADABLE_NAMES)
    assert {b.reason for b in unreadable} >= {"empty, or not an image"}
    assert sum(int((batch.targets == -1).sum()) for batch in batches) >= len(unreadable)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_in_training(tmp_path, workers):
    """Full batches of readable images, the same after a resume; every unreadable one is named."""
    root = with_unreadable(tmp_path)

    def batches(start=0):
        options = {"seed": 1, "epoch": 2, "start_batch": start, "processes": Processes(workers=workers)}
        return list(train_loader(source(root), noisy, batch_size=2, **options))

    whole = batches()
    assert len(whole) == 19 and all(len(batch.images) == 2 for batch in whole)
    assert {b.name for batch in whole for b in batch.unreadable} <= {
        n.format("train") for n in UNREADABLE_NAMES
    }
    if not workers:  # one process reads everything once
        assert {b.name for batch in whole for b in batch.unreadable} == {
            n.format("train") for n in UNREADABLE_NAMES
        }
    for start in range(1, 19, 4):
        for batch, expected in zip(batches(start), whole[start:], strict=True):
            assert torch.equal(batch.images, expected.images) and torch.equal(batch.targets, expected.targets)


def test_an_unreadable_image_gives_way_to_the_next(tmp_path):
    contents = [
        encode(picture(0)),
        UNREADABLE["empty.jpg"],
        UNREADABLE["text.jpg"],
        encode(picture(3)),
        encode(picture(4)),
    ]
    stream = source(write_shards(tmp_path, {"train": [contents]}))
    stream._held = 1, 1  # in the order of the file
    loader = train_loader(stream, plain, batch_size=5, seed=0)
    (batch,) = loader
    assert [number(image) for image in batch.images] == [0, 3, 3, 3, 4]
    assert batch.targets.tolist() == [0, 3, 3, 3, 0]
    assert [b.name for b in batch.unreadable] == ["train-0.tar/0001", "train-0.tar/0002"]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable(tmp_path, workers):
    stream = source(write_shards(tmp_path, {"train": [[b""] * 4]}))
    with pytest.raises(DataError) as error:
        list(train_loader(stream, plain, batch_size=2, seed=0, processes=Processes(workers=workers)))
    assert str(error.value).startswith("none of the 4 images can be read; train-0.tar/000")


@pytest.mark.parametrize("damage", ["truncated", "gone", "noise"])
def test_damaged_shard(tmp_path, damage):
    """What should be there and is not counts as unreadable, image by image; the other shards are read."""
    root = write_shards(tmp_path, {"val": numbered((5, 10, 5))})
    stream = source(root, "val")
    file = root / "val-1.tar"
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 3] if damage == "truncated" else b"\xff" * len(content))
    batches = list(eval_loader(stream, plain, batch_size=4))
    unreadable = [b for batch in batches for b in batch.unreadable]
    kept = seen(batches)
    assert set(kept) >= {*range(5), *range(15, 20)} and len(kept) + len(unreadable) == 20
    assert (len(unreadable) < 10) == (damage == "truncated")
    assert all(b.name.startswith("val-1.tar[") and b.reason for b in unreadable)


def test_samples_without_an_image_or_a_label(tmp_path):
    contents = [("txt", b"words"), ("cls2", b""), encode(picture(2))]
    stream = source(write_shards(tmp_path, {"val": [contents]}), "val")
    (batch,) = eval_loader(stream, plain, batch_size=3)
    assert batch.targets.tolist() == [-1, -1, 2]
    assert [b.reason for b in batch.unreadable] == ["no image among txt, cls", "no image among cls2, cls"]


def test_labels_beyond_the_network(root):
    stream = source(root)
    stream.check_classes(3)
    with pytest.raises(DataError, match="has the label 3, and the network 3 classes"):
        list(eval_loader(stream, plain, batch_size=4))


def test_names_limits_and_lengths(root):
    names = {name: i for i, name in enumerate("abcd")}
    stream = source(root, class_map=names)
    assert stream.class_names == list("abcd") and stream.num_classes == 4
    limited = source(root, limit=12)
    assert len(limited) == 12 and seen(eval_loader(limited, plain, batch_size=5)) == list(range(12))
    longer = source(root, training=True, num_samples=100)
    assert len(longer) == 100 and len(train_loader(longer, plain, batch_size=10, seed=0)) == 10
    assert len(list(train_loader(longer, plain, batch_size=10, seed=0))) == 10


def test_thirteen_channels(tmp_path):
    import io

    def saved(array):
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    arrays = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 13), np.uint8)
    root = write_shards(tmp_path, {"val": [[saved(a) for a in arrays]]}, ending="npy")
    (batch,) = eval_loader(source(root, "val", channels=13), plain, batch_size=3)
    assert np.array_equal(batch.images.numpy(), arrays.transpose(0, 3, 1, 2))


def test_remote_shards(root):
    """Any address that webdataset opens."""
    assert seen(eval_loader(source(f"file://{root}"), plain, batch_size=4)) == list(range(38))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"filenames": ["val-0.tar", "val-9.tar"]}, "names .*val-9.tar, which does not exist"),
        ({"filenames": ["val-0.tar"]}, "names 1 shards and 2 shard_lengths"),
        ({"filenames": [], "shard_lengths": []}, "names 0 shards"),
        ({"alt_label": "other"}, "alt_label 'other'"),
        ({"shard_lengths": [3, 1]}, "holds more than the 3 images that _info.json says"),
        ({"shard_lengths": None}, "timm cannot read wds/"),
    ],
    ids=str,
)
def test_wrong_info(tmp_path, change, said):
    root = write_shards(tmp_path, {"val": numbered([4, 1])})
    info = json.loads((root / "_info.json").read_text())
    info["splits"]["val"].update(change)
    (root / "_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=said):
        list(eval_loader(source(root, "val"), plain, batch_size=4))
    with pytest.raises(DataError, match="split none not found"):
        source(root, "none")


def test_hidden_files_in_shards(tmp_path):
    """As tar of macOS and Jupyter's folders leave them."""
    root = write_shards(tmp_path, {"train": numbered([4])})
    names = ["._0000.png", ".ipynb_checkpoints/0000-checkpoint.png", "__MACOSX/0000.png", "a/.x/1.png"]
    with tarfile.open(root / "train-0.tar", "a") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 8
            tar.addfile(member, io.BytesIO(b"no image"))
    batches = list(eval_loader(source(root), plain, batch_size=4))
    assert numbers(batches) == [[0, 1, 2, 3]] and batches[0].unreadable == []
