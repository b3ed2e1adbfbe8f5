"""Whether a training diverges, by the numbers of its steps."""

from __future__ import annotations

import json
import math

import pytest

from stormproof.divergence.detector import MAX_OVERFLOWS, DivergenceDetector

HEALTHY = {"gradient norm": 1.0, "loss": 1.0}


def healthy(steps: int = 40, **options: int) -> DivergenceDetector:
    detector = DivergenceDetector(**options)
    for step in range(1, steps + 1):
        assert detector.update(step, HEALTHY) is None
    return detector


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_an_anomaly_from_the_first_step_on(name: str, value: float):
    anomaly = DivergenceDetector().update(1, {**HEALTHY, name: value})
    assert anomaly is not None
    assert (anomaly.step, anomaly.name, anomaly.median) == (1, name, None)
    assert str(anomaly) == f"step 1: the {name} is {value}"


def test_a_loss_that_jumps_is_one():
    anomaly = healthy().update(41, {"loss": 1000.0})
    assert str(anomaly) == "step 41: the loss is 1e+03 (median of earlier steps: 1)"


def test_a_gradient_is_let_jump_tenfold():
    assert healthy().update(41, {"gradient norm": 9.9, "loss": 1.0}) is None
    assert healthy().update(41, {"gradient norm": 10.1, "loss": 1.0}) is not None


def test_a_loss_is_let_rise_threefold():
    assert healthy().update(41, {"loss": 2.9}) is None
    assert healthy().update(41, {"loss": 3.1}) is not None


def test_what_is_anomalous_is_nothing_to_compare_with():
    detector = healthy()
    for step in range(41, 141):
        assert detector.update(step, {"loss": 50.0}) is not None
    assert detector.consecutive_anomalies == 100


def test_an_anomaly_counts_once_however_long_it_lasts():
    detector = healthy(memory_steps=100)
    for step in (41, 42, 50, 60):
        assert detector.update(step, {"loss": math.nan}) is not None
        if step != 41:
            assert detector.update(step + 1, HEALTHY) is None
    assert detector.anomaly_count == 3  # at 41, 50 and 60
    detector.update(145, {"loss": math.nan})
    assert detector.anomaly_count == 3  # that of step 41 is forgotten


def test_it_lasts_until_a_healthy_step():
    detector = healthy()
    assert (detector.since_step, detector.consecutive_anomalies) == (None, 0)
    detector.update(41, {"loss": math.inf})
    detector.update(42, {"loss": 1000.0})
    assert (detector.since_step, detector.consecutive_anomalies) == (41, 2)
    detector.update(43, HEALTHY)
    assert (detector.since_step, detector.consecutive_anomalies) == (None, 0)


def test_a_healthy_number_of_an_earlier_step_does_not_end_an_anomaly():
    detector = healthy()
    detector.update(43, {"gradient norm": math.nan})
    detector.update(42, {"loss": 1.0})  # which was read later
    assert detector.since_step == 43


@pytest.mark.parametrize("name", HEALTHY)
def test_what_a_gradient_scaler_refuses_is_no_anomaly_unless_it_goes_on(name: str):
    detector = healthy()
    overflow = {**HEALTHY, name: math.inf}
    for step in range(41, 40 + MAX_OVERFLOWS):
        assert detector.update(step, overflow, has_grad_scaler=True) is None
    assert detector.update(40 + MAX_OVERFLOWS, overflow, has_grad_scaler=True) is not None


def test_a_step_that_it_accepts_ends_the_count():
    detector = healthy()
    for step in range(41, 41 + 3 * MAX_OVERFLOWS):
        assert detector.update(step, {**HEALTHY, "loss": math.nan if step % 2 else 1.0}, has_grad_scaler=True) is None


def test_a_spike_is_an_anomaly_with_a_scaler_too():
    assert healthy().update(41, {"loss": 1000.0}, has_grad_scaler=True) is not None


def test_it_goes_on_from_its_state():
    original = healthy()
    original.update(41, {"loss": math.nan})
    restored = DivergenceDetector()
    restored.load_state_dict(json.loads(json.dumps(original.state_dict())))
    for step in range(42, 60):
        numbers = {"gradient norm": 2.0 if step % 3 else 40.0, "loss": 1.0}
        assert original.update(step, numbers) == restored.update(step, numbers)
    assert original.state_dict() == restored.state_dict()


def test_a_number_out_of_its_range_is_refused():
    with pytest.raises(ValueError, match="`memory_steps` must be at least 1, got 0"):
        DivergenceDetector(memory_steps=0)
    with pytest.raises(ValueError, match="got window=8"):
        DivergenceDetector(window=8)


def test_set_back_it_counts_overflows_from_zero():
    detector = healthy()
    detector.update(41, {"gradient norm": math.inf}, has_grad_scaler=True)
    assert detector.consecutive_overflows == 1
    detector.roll_back(None)
    assert detector.consecutive_overflows == 0


def test_set_back_it_compares_with_the_numbers_of_then():
    """A training that was set back to its beginning has the losses of its beginning."""
    detector = DivergenceDetector()
    for step in range(1, 41):
        detector.update(step, {"loss": 2.3})
    saved_state = detector.state_dict()
    for step in range(41, 300):
        detector.update(step, {"loss": 0.2})
    assert detector.update(300, {"loss": 2.4}) is not None
    assert detector.anomaly_count == 0  # a spike counts once more is done about it than to skip it
    detector.count_anomaly(300)
    detector.count_anomaly(301)
    detector.roll_back(saved_state)
    assert (detector.since_step, detector.anomaly_count) == (None, 1)
    assert detector.update(301, {"loss": 2.4}) is None
    detector.roll_back(None)
    assert detector.update(302, {"loss": 1000.0}) is None  # it has nothing to compare with
