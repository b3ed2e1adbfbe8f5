"""What is a spike of a series, and what is its noise."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stormproof.divergence.spike_detector import MAD_TO_STD, SpikeDetector


def noisy_series(count: int, spread: float = 0.3, level: float = 1.0, seed: int = 0) -> list[float]:
    return (level * np.exp(spread * np.random.default_rng(seed).standard_normal(count))).tolist()


def feed_detector(values: list[float], **options: float) -> SpikeDetector:
    detector = SpikeDetector(**options)
    for value in values:
        detector.add(value)
    return detector


def test_seven_robust_deviations_above_the_median_is_a_spike():
    detector = feed_detector(noisy_series(2000), window=2000)
    assert detector.detect(math.exp(0.3 * 6.5)) is None
    median = detector.detect(math.exp(0.3 * 7.5))
    assert median == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_unit_of_the_series_is_of_no_matter(factor: float):
    detector = feed_detector(noisy_series(64, level=factor))
    assert detector.detect(30 * factor) is not None
    assert detector.detect(2 * factor) is None


def test_a_series_that_scatters_more_may_go_further():
    assert feed_detector(noisy_series(128, spread=0.1)).detect(4.0) is not None
    assert feed_detector(noisy_series(128, spread=0.6)).detect(4.0) is None


def test_a_series_that_hardly_scatters_may_rise_threefold():
    detector = feed_detector([1.0] * 40)
    assert detector.detect(3.0) is None
    assert detector.detect(3.01) == 1.0


def test_after_four_values_beyond_the_window_a_value_within_its_range_is_no_spike():
    detector = feed_detector(noisy_series(128, spread=0.6))
    for value in (20.0, 21.0, 22.0, 23.0):
        detector.add(value)
    assert detector.detect(24.0) is not None
    assert detector.detect(4.0) is None


def test_it_is_silent_while_it_warms_up():
    assert feed_detector([1.0] * 31, warm_up=32).detect(1e9) is None
    assert feed_detector([1.0] * 32, warm_up=32).detect(1e9) is not None


def test_it_is_silent_on_the_noise_of_a_series_that_has_fallen_near_zero():
    """A batch with one hard sample, in a training that has learnt all others by heart."""
    detector = feed_detector([2.3] * 32 + [1e-5] * 200)
    assert detector.detect(1.0) is None
    assert detector.detect(2.0) is not None


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_it_is_silent_for_good_once_a_value_has_no_logarithm(value: float):
    detector = feed_detector([1.0] * 64 + [value] + [1.0] * 64)
    assert detector.detect(1e9) is None


def test_after_a_spike_half_the_deviations_are_enough():
    detector = feed_detector(noisy_series(128))
    assert detector.detect(5.0) is None
    assert detector.detect(5.0, after_spike=True) is not None


def test_it_follows_a_series_that_rises_slowly():
    detector = feed_detector([1.0] * 32)
    for exponent in range(1, 200):
        value = 1.02**exponent
        assert detector.detect(value) is None
        detector.add(value)


@pytest.mark.parametrize("seed", range(5))
def test_in_ten_thousand_steps_of_noise_there_is_none(seed: int):
    values = noisy_series(10_000, spread=0.5, seed=seed)
    detector = SpikeDetector()
    for value in values:
        assert detector.detect(value) is None
        detector.add(value)


def test_a_series_that_scatters_widely_is_told_when_it_stays_where_it_never_was():
    """A network whose units have all died: its loss is that of chance, which a batch of before may have come near."""
    detector = feed_detector([2.3] * 32 + noisy_series(200, spread=1.0, level=0.05))
    spikes = []
    for value in noisy_series(10, spread=0.05, level=2.3):
        spikes.append(detector.detect(value) is not None)
        if not spikes[-1]:
            detector.add(value)
    assert spikes == [False] * 4 + [True] * 6


def test_values_that_are_far_out_now_and_then_are_not_told():
    detector = feed_detector([2.3] * 32 + noisy_series(200, spread=1.0, level=0.05))
    for step in range(100):
        value = 2.3 if step % 5 else 0.05
        assert detector.detect(value) is None
        detector.add(value)


positive = st.floats(1e-6, 1e6)


@given(st.lists(positive, min_size=4, max_size=40), positive, st.integers(4, 12), st.booleans())
def test_it_is_what_the_formula_says(values: list[float], value: float, window: int, again: bool):
    detector = SpikeDetector(window=window, warm_up=4)
    start, taken, above = statistics.median(values[:4]), list(values[:4]), []
    for loss in (*values, value):
        last = taken[-window:]
        middle = statistics.median(last)
        spread = MAD_TO_STD * statistics.median(abs(math.log(x / middle)) for x in last)
        limits = [math.log(loss / middle) - 7.0 * spread * (0.5 if again else 1.0)]
        out = [loss / middle - 3.0, loss / start - 0.5]
        if len(detector.state_dict()["values"]) < 4:
            detector.add(loss)
            continue
        if min(map(abs, [*limits, *out, loss / max(last) - 1.5])) < 1e-9:  # rounding may fall to either side
            return
        far, highest = all(x > 0 for x in out), loss > 1.5 * max(last)
        expected = far and (limits[0] > 0 or (highest and len(above) >= 4))
        assert (detector.detect(loss, after_spike=again) is not None) == expected
        if expected:
            continue
        detector.add(loss)
        if far and highest:
            above.append(loss)
        else:
            taken, above = [*taken, *above, loss], []


@given(st.lists(positive, max_size=40), st.lists(positive, min_size=1, max_size=20))
def test_it_goes_on_from_its_state(before: list[float], after: list[float]):
    original, restored = feed_detector(before, window=8, warm_up=4), SpikeDetector(window=8, warm_up=4)
    restored.load_state_dict(original.state_dict())
    for value in after:
        assert original.detect(value) == restored.detect(value)
        original.add(value)
        restored.add(value)
    assert original.state_dict() == restored.state_dict()


def test_its_state_is_its_own():
    detector = feed_detector([1.0] * 8)
    state = detector.state_dict()
    detector.add(5.0)
    assert state["values"] == [1.0] * 8


@pytest.mark.parametrize(
    "options",
    [
        {"warm_up": 1},
        {"window": 8, "warm_up": 9},
        {"spike_sigma": 0.0},
        {"factor": 1.0},
        {"factor": 0.5},
        {"floor": -0.1},
    ],
)
def test_a_number_out_of_its_range_is_refused(options: dict[str, float]):
    with pytest.raises(ValueError, match="must"):
        SpikeDetector(**options)


def test_the_spread_of_a_normal_distribution_is_its_standard_deviation():
    logs = sorted(map(math.log, noisy_series(20_001, spread=0.4)))
    deviations = sorted(abs(log_loss - logs[10_000]) for log_loss in logs)
    assert MAD_TO_STD * deviations[10_000] == pytest.approx(0.4, rel=0.02)
