from collections import Counter

import numpy as np
import pytest

from stormproof_train.data.splits import split_three_ways, split_two_ways


@pytest.mark.parametrize(("validation", "test"), [(0.15, 0.15), (0.1, 0.4), (0.5, 0.25)])
@pytest.mark.parametrize("stratified", [True, False])
def test_splits_never_overlap_and_lose_nobody(validation: float, test: float, stratified: bool):
    classes = np.arange(200) % 4 if stratified else None
    parts = split_three_ways(200, validation, test, 1, classes)
    assert sorted(np.concatenate(parts)) == list(range(200))
    held_out = [round(200 * validation), round(200 * test)]
    assert [len(part) for part in parts] == [200 - sum(held_out), *held_out]
    assert all((np.diff(part) > 0).all() for part in parts)


def test_splits_are_stratified():
    classes = np.repeat([0, 1, 2], [100, 60, 40])
    for part, share in zip(split_three_ways(200, 0.2, 0.1, 0, classes), (0.7, 0.2, 0.1), strict=True):
        assert Counter(classes[part].tolist()) == {0: 100 * share, 1: 60 * share, 2: 40 * share}


def test_the_seed_and_nothing_else_fixes_a_split():
    first, repeated, other_seed = (split_three_ways(100, 0.2, 0.2, seed) for seed in (1, 1, 2))
    np.random.seed(5)  # noqa: NPY002 (the global state is what must not matter)
    later = split_three_ways(100, 0.2, 0.2, 1)
    for a, b, c, d in zip(first, repeated, later, other_seed, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
        assert not np.array_equal(a, d)


@pytest.mark.parametrize(("validation", "test"), [(0, 0.2), (0.2, 0), (-0.1, 0.2), (0.5, 0.5), (0.9, 0.2)])
def test_shares_that_leave_a_part_empty_are_refused(validation: float, test: float):
    with pytest.raises(ValueError, match=f"must be above 0 and have a sum below 1, got {validation} and {test}"):
        split_three_ways(100, validation, test, 0)


@pytest.mark.parametrize("fraction", [0, 1, -1, 1.5, float("nan")])
def test_a_share_outside_its_range_cannot_be_held_out(fraction: float):
    with pytest.raises(ValueError, match=f"the held-out fraction must be between 0 and 1, got {fraction}"):
        split_two_ways(10, fraction, 0)


def test_a_class_with_one_sample_cannot_be_split():
    with pytest.raises(ValueError, match=r"needs 2 samples per class, got 1 of class b"):
        split_two_ways(21, 0.3, 0, np.array([*"aaaaaaaaaabcccccccccc"]))
