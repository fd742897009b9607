"""The confusion matrix, against counting by hand, and its figures."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from ganglion.analysis.confusion import Confusion, plot_confusion


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    targets = rng.integers(-1, 7, 400)
    predicted = np.where(rng.random(400) < 0.6, targets, rng.integers(-1, 7, 400))
    predicted[targets == 3] = 5
    predicted[predicted == 6] = 0
    return targets, predicted


NAMES = list("abcdefghij")


def test_numbers_counted_by_hand(answers):
    targets, predicted = answers
    confusion = Confusion(targets, predicted, NAMES)
    pairs = [(t, p) for t, p in zip(targets, predicted, strict=True) if t >= 0]
    for row in confusion.classes():
        assert row.name == NAMES[row.index]
        assert row.images == sum(t == row.index for t, _ in pairs)
        assert row.predicted == sum(p == row.index for _, p in pairs)
        assert row.correct == sum(t == p == row.index for t, p in pairs)
        assert row.top1 == pytest.approx(100 * row.correct / row.images)
    assert [row.index for row in confusion.classes()] == list(range(7))
    classes, matrix = confusion.matrix()
    assert classes == list(range(7))
    for i in classes:
        for j in classes:
            assert matrix[i, j] == pairs.count((i, j))


def test_the_worst_and_the_most_confused_come_first(answers):
    confusion = Confusion(*answers, NAMES)
    worst = confusion.worst(3)
    assert {worst[0].name, worst[1].name} == {"d", "g"} and worst[0].top1 == worst[1].top1 == 0
    assert worst[0].images >= worst[1].images
    pair = confusion.confused(1)[0]
    assert (pair.target, pair.predicted) == ("d", "f") and pair.count == pair.images
    assert [p.target for p in confusion.confused(9, target=0)] == ["a"] * len(confusion.confused(9, target=0))
    counts = [p.count for p in confusion.confused(100)]
    assert counts == sorted(counts, reverse=True)


def test_without_errors_and_without_images():
    right = Confusion(np.array([0, 1]), np.array([0, 1]), NAMES)
    assert right.worst(5) == [] and right.confused(5) == []
    assert Confusion(np.array([-1]), np.array([2]), NAMES).classes() == []


@pytest.mark.parametrize("size", [1, 2, 12, 13, 61, 251, 1000])
def test_pictures_of_few_classes_and_of_many(tmp_path, size):
    """Names that are long, hold what matplotlib takes for mathematics, or end a line."""
    targets = np.arange(size)
    predicted = targets.copy()
    predicted[0] = size - 1
    names = [f"{'long ' * 9}$x_{i}^ name\n{i}" for i in range(size)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_confusion(Confusion(targets, predicted, names), "a $ title", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    axes = figure.axes[0]
    cells = axes.images[0].get_array()
    assert cells.shape == (min(size, 250),) * 2
    assert cells[0, -1] == (1 if size > 1 else cells[0, 0]), "one confusion stays visible"
    assert len(axes.get_xticklabels()) == size or size > 60
    assert len(axes.texts) == (size if size <= 12 else 0)
