"""What random search would have reached: the closed form against draws."""

import math

import numpy as np
import pytest

from stormproof_train.search.results import expected_minimum, extrapolate_final_losses
from stormproof_train.search.rungs import TrialStatus


@pytest.mark.parametrize("draws", [1, 2, 7, 40])
def test_the_expected_smallest_is_that_of_many_draws(draws: int):
    generator = np.random.default_rng(0)
    values = generator.lognormal(size=23)
    samples = generator.choice(values, size=(40_000, draws)).min(axis=1)
    error = samples.std() / math.sqrt(len(samples))
    assert expected_minimum(list(values), draws) == pytest.approx(samples.mean(), abs=5 * error)


def test_a_part_of_a_draw_counts_as_a_part():
    values = [3.0, 1.0, 2.0]
    expected = [expected_minimum(values, draws) for draws in (0.5, 1, 1.5, 2, 1000)]
    assert expected == sorted(expected, reverse=True)
    assert expected[1] == pytest.approx(2.0)
    assert expected[-1] == pytest.approx(1.0)


def test_one_that_was_stopped_counts_as_if_its_loss_had_fallen_by_the_factor_of_the_complete_ones():
    complete = [
        TrialStatus(n, {0.5: start, 1.0: end}, is_complete=True) for n, start, end in ((0, 0.8, 0.4), (1, 0.6, 0.15))
    ]
    stopped = TrialStatus(2, {0.5: 0.8}, has_ended=True)
    assert extrapolate_final_losses([*complete, stopped]) == pytest.approx([0.4, 0.15, 0.8 * (0.5 + 0.25) / 2])


def test_where_the_smaller_may_be_below_zero_it_falls_by_a_difference():
    complete = TrialStatus(0, {0.5: -0.25, 1.0: -0.75}, is_complete=True)
    assert extrapolate_final_losses([complete, TrialStatus(1, {0.5: -0.125})]) == [-0.75, -0.625]


def test_where_the_complete_ones_grew_worse_it_is_taken_as_it_was():
    complete = TrialStatus(0, {0.5: 0.2, 1.0: 0.4}, is_complete=True)
    assert extrapolate_final_losses([complete, TrialStatus(1, {0.5: 0.6})]) == [0.4, 0.6]


def test_what_is_not_finite_stays_so():
    complete = TrialStatus(0, {0.5: 0.5, 1.0: 0.4}, is_complete=True)
    assert extrapolate_final_losses([complete, TrialStatus(1, {0.5: math.inf})]) == [0.4, math.inf]
