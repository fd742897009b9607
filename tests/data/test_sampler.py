"""Properties of the samplers, for any numbers of images, ranks and images in a batch."""

from __future__ import annotations

from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganglion.data.sampler import EvalSampler, Key, TrainSampler

LENGTHS, BATCHES, RANKS = st.integers(0, 70), st.integers(1, 9), st.integers(1, 5)
SEEDS, EPOCHS = st.integers(0, 2**40), st.integers(0, 400)
anything = settings(deadline=None, max_examples=60)


def batches(sampler) -> list[list[Key]]:
    keys = iter(sampler)
    return list(iter(lambda: list(islice(keys, sampler.batch_size)), []))


@anything
@given(LENGTHS, BATCHES, RANKS, SEEDS, EPOCHS)
def test_training_partitions_the_order_of_one_rank(length, batch_size, ranks, seed, epoch):
    """Side by side, the ranks' batches are the batches of a single rank with the whole global batch."""
    place = {"seed": seed, "epoch": epoch}
    shares = [
        batches(TrainSampler(length, batch_size=batch_size, rank=r, world_size=ranks, **place))
        for r in range(ranks)
    ]
    together = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert together == batches(TrainSampler(length, batch_size=batch_size * ranks, **place))
    indices = [index for batch in together for index, _ in batch]
    assert len(set(indices)) == len(indices) == length - length % (batch_size * ranks)
    assert set(indices) <= set(range(length))
    assert all(len(list(chain(*share))) == len(indices) // ranks for share in shares)


@anything
@given(LENGTHS, BATCHES, RANKS, SEEDS, EPOCHS, st.integers(0, 30))
def test_starting_later_is_skipping(length, batch_size, ranks, seed, epoch, start):
    options = {"batch_size": batch_size, "seed": seed, "rank": ranks - 1, "world_size": ranks}
    whole = TrainSampler(length, epoch=epoch, **options)
    late = TrainSampler(length, epoch=epoch, start_batch=start, **options)
    assert batches(late) == batches(whole)[start:]
    assert len(late) == len(whole) == len(list(whole))
    late.set_epoch(epoch)  # it is there already, in its middle
    assert batches(late) == batches(whole)[start:]
    late.set_epoch(epoch + 1)
    whole.set_epoch(epoch + 1)
    assert batches(late) == batches(whole)


@anything
@given(st.integers(20, 70), SEEDS, EPOCHS)
def test_seed_and_epoch_matter(length, seed, epoch):
    def keys(seed, epoch):
        return list(TrainSampler(length, batch_size=2, seed=seed, epoch=epoch))

    assert keys(seed, epoch) == keys(seed, epoch)
    for other in (keys(seed + 1, epoch), keys(seed, epoch + 1)):
        assert [index for index, _ in other] != [index for index, _ in keys(seed, epoch)]
        assert {draw for _, draw in other} != {draw for _, draw in keys(seed, epoch)}


@anything
@given(LENGTHS, BATCHES, RANKS)
def test_evaluation_sees_each_image_once(length, batch_size, ranks):
    shares = [
        list(batches(EvalSampler(length, batch_size=batch_size, rank=r, world_size=ranks)))
        for r in range(ranks)
    ]
    assert len({tuple(map(len, share)) for share in shares}) == 1, "ranks would wait for each other"
    seen = [index for share in shares for batch in share for index, _ in batch]
    assert sorted(index for index in seen if index >= 0) == list(range(length))
    assert seen.count(-1) < ranks
    for r, share in enumerate(shares):
        sampler = EvalSampler(length, batch_size=batch_size, rank=r, world_size=ranks)
        assert len(sampler) == sum(map(len, share)) and sampler.batches == len(share)


@pytest.mark.parametrize("ranks", [2, 3])
def test_uneven_last_batch(ranks):
    """13 images in batches of 4: what an example looks like."""
    shares = [
        [[i for i, _ in b] for b in batches(EvalSampler(13, batch_size=4, rank=r, world_size=ranks))]
        for r in range(ranks)
    ]
    expected = {
        2: [[[0, 1, 2, 3], [8, 9, 10]], [[4, 5, 6, 7], [11, 12, -1]]],
        3: [[[0, 1, 2, 3], [12]], [[4, 5, 6, 7], [-1]], [[8, 9, 10, 11], [-1]]],
    }
    assert shares == expected[ranks]


def test_seed_and_epoch_are_two_words():
    keys = [list(TrainSampler(9, batch_size=1, seed=seed, epoch=epoch)) for seed, epoch in ((0, 1), (1, 0))]
    assert keys[0] != keys[1]
    assert {seed for _, seed in keys[0]}.isdisjoint(seed for _, seed in keys[1])


def test_fixed_keys():
    """The order of the images, and what the augmentation at each position draws from: a run that is resumed by another
    version has to find them as they were."""
    assert list(TrainSampler(6, batch_size=3, seed=0, epoch=0)) == [
        (0, 3757552657), (4, 2018376492), (3, 1456443223), (5, 3395645823), (1, 2612339235), (2, 1723480411)
    ]  # fmt: skip
    assert list(TrainSampler(6, batch_size=3, seed=7, epoch=2)) == [
        (5, 2587022545), (2, 3587742312), (1, 3076237486), (4, 3852073817), (0, 286628982), (3, 1537524964)
    ]  # fmt: skip


@anything
@given(st.lists(st.integers(0, 2), max_size=70), BATCHES, RANKS, SEEDS, EPOCHS)
def test_batches_of_one_group(groups, batch_size, ranks, seed, epoch):
    """Every batch of a rank holds one group, but for those made of what each group has left over at the end."""
    place = {"batch_size": batch_size, "seed": seed, "epoch": epoch, "groups": groups}
    shares = [batches(TrainSampler(len(groups), rank=r, world_size=ranks, **place)) for r in range(ranks)]
    pieces = list(chain(*zip(*shares, strict=True)))
    indices = [index for piece in pieces for index, _ in piece]
    assert len(set(indices)) == len(indices) == len(groups) - len(groups) % (batch_size * ranks)
    whole = sum(groups.count(group) // batch_size for group in range(3))
    assert all(len({groups[index] for index, _ in piece}) == 1 for piece in pieces[:whole])
    plain = list(TrainSampler(len(groups), batch_size=1, seed=seed, epoch=epoch))
    for group in range(3):
        within = [index for piece in pieces[:whole] for index, _ in piece if groups[index] == group]
        assert within == [index for index, _ in plain if groups[index] == group][: len(within)]


def test_a_group_for_every_image():
    with pytest.raises(ValueError, match="2 groups of 3 images"):
        TrainSampler(3, batch_size=1, seed=0, groups=[0, 1])
