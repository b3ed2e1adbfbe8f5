import math

import numpy as np

from stormproof_train.tuning.learning_rate import Reading, combine_readings, read_range_test

RATES = [10 ** (step / 14 - 6) for step in range(100)]


def falling_losses(noise: float = 0.0, at: float = 1e-3, diverging: float = 1e3) -> list[float]:
    """Losses that fall from 2 to 1 around a rate, and rise from another on."""
    samples = np.random.default_rng(0).normal(0, noise, len(RATES))
    clean = [1 + 1 / (1 + rate / at) + 9 * max(0, math.log(rate / diverging)) for rate in RATES]
    return [loss + further for loss, further in zip(clean, samples, strict=True)]


def test_half_of_the_fall_is_found_behind_noise() -> None:
    result = read_range_test(RATES, falling_losses(noise=0.1))
    assert result.suggested is not None
    assert 3e-4 < result.suggested < 3e-3
    assert result.diverged is None


def test_a_rate_that_diverges_is_told_whether_the_loss_rises_or_is_no_number() -> None:
    rising = read_range_test(RATES, falling_losses(diverging=0.1))
    assert rising.diverged is not None
    assert 0.05 < rising.diverged < 0.3
    losses = [loss if rate < 0.1 else math.nan for rate, loss in zip(RATES, falling_losses(), strict=True)]
    broken = read_range_test(RATES, losses)
    assert broken.diverged == next(rate for rate in RATES if rate >= 0.1)
    assert broken.suggested is not None


def test_losses_below_zero_are_read_as_any_others() -> None:
    below = read_range_test(RATES, [loss - 5 for loss in falling_losses(diverging=0.1)])
    assert below == read_range_test(RATES, falling_losses(diverging=0.1))


def test_noise_alone_suggests_nothing() -> None:
    assert read_range_test(RATES, list(np.random.default_rng(0).normal(2, 0.3, len(RATES)))).suggested is None
    assert read_range_test(RATES, [2.0] * len(RATES)) == Reading(None, None)


def test_a_loss_that_is_no_number_from_the_start_suggests_nothing() -> None:
    assert read_range_test(RATES, [math.nan] * len(RATES)) == Reading(None, RATES[0])


def test_nothing_is_agreed_on_where_no_training_suggests_a_rate() -> None:
    assert combine_readings([Reading(None, 0.1), Reading(None, None)]) is None
