"""Test which images are held out: pytest tests/data/test_splitting.py"""

import numpy as np
import pytest

from cnnlab import ArgumentError
from cnnlab.data.splitting import hold_out, stratified_split


def labels_of(counts):
    return np.repeat(np.arange(len(counts)), counts)


def held_out(counts, share, **options):
    """Hold out of classes of these sizes, and count by class."""
    names = [str(i) for i in range(len(counts))]
    held = hold_out(labels_of(counts), share, names, 0, "split", **options)
    assert sorted([*held.rest, *held.positions]) == list(range(sum(counts)))
    return held, np.bincount(labels_of(counts)[held.positions], minlength=len(counts))


@pytest.mark.parametrize("counts", [[10, 10], [6, 6], [300, 300, 4], [50] * 10, [979, 20, 30], [40, 1, 2]])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.25])
def test_a_split_that_keeps_its_share_is_as_it_was(counts, share):
    names = [str(i) for i in range(len(counts))]
    before = stratified_split(labels_of(counts), share, names, 0, "split")
    held, _ = held_out(counts, share)
    assert not held.apportioned
    assert np.array_equal(held.rest, before[0])
    assert np.array_equal(held.positions, before[1])


def test_small_classes_are_held_out_by_largest_remainders():
    held, by_class = held_out([3] * 100, 0.2)
    assert (len(held.positions), by_class.max()) == (60, 1)
    assert held.apportioned
    assert held.is_kept
    held, by_class = held_out([1000] + [3] * 50, 0.1)  # quotas of 100 and 0.3
    assert by_class[0] == 100
    assert by_class[1:].sum() == 15
    held, by_class = held_out([3] * 100, 0.2, every_class=True)
    assert by_class.tolist() == [1] * 100
    assert not held.is_kept
    assert held.describe("are out", "it").endswith(
        "100 of 300 pictures (33%) are out, where it is 0.2, so that each class has one"
    )


def test_no_class_gives_more_than_half_to_both_splits():
    rng = np.random.default_rng(0)
    for _ in range(100):
        counts = rng.integers(1, 9, rng.integers(3, 40))
        test, by_class = held_out(counts, 0.2, whole_share=0.28)
        val, more = held_out(counts - by_class, 0.1, away=by_class, whole_share=0.28)
        assert (by_class + more <= np.maximum(counts / 2, 0)).all()
        assert test.is_kept
        assert val.is_kept


def test_what_cannot_be_kept_is_described():
    held, by_class = held_out([10] + [1] * 90, 0.2)
    assert by_class.tolist() == [5] + [0] * 90
    assert (
        held.describe("are out", "it")
        == "5 of 100 pictures (5%) are out, where it is 0.2, as small classes stay for training"
    )
    with pytest.raises(ArgumentError, match="on both sides of the split"):
        held_out([1] * 5, 0.2)
    _, by_class = held_out([10, 10], 0.9)  # what was asked for, not rounding, takes more than half
    assert by_class.tolist() == [9, 9]
