from __future__ import annotations

import pytest

from stormproof.hang.stall_detector import StallDetector

SECONDS = 100  # one sample per second
NO_EXCUSE = [0.0] * SECONDS


def stall_seconds(progress: list[int], work_per_second: list[float], window: float = 10.0) -> list[float]:
    """Returns the stall that a detector reports each second."""
    detector = StallDetector(window)
    result, stalls = 0.0, []
    for second, (passed, worked) in enumerate(zip(progress, work_per_second, strict=True)):
        result += worked
        stalls.append(detector.update(float(second), passed, lambda result=result: result))
    return stalls


def test_a_stall_starts_at_the_first_sample_without_progress():
    stalls = stall_seconds([min(second, 5) for second in range(SECONDS)], NO_EXCUSE)
    assert stalls[:16] == [0.0] * 16  # the last progress is at 5, and 6 is the first sample without
    assert stalls[16:] == [float(second - 6) for second in range(16, SECONDS)]


def test_slow_progress_is_not_a_stall():
    assert max(stall_seconds([second // 10 for second in range(SECONDS)], NO_EXCUSE)) == 0.0


def test_work_without_progress_is_not_a_stall():
    assert max(stall_seconds([0] * SECONDS, [1.0] * SECONDS)) == 0.0
    assert max(stall_seconds([0] * SECONDS, [0.06] * SECONDS)) == 0.0


def test_background_activity_does_not_count_as_work():
    assert stall_seconds([0] * SECONDS, [0.02] * SECONDS)[-1] == SECONDS - 2
    bursts = [0.3 if second % 15 == 0 else 0.0 for second in range(SECONDS)]  # of a logger, every 15 s
    assert stall_seconds([0] * SECONDS, bursts)[-1] == SECONDS - 2


def test_a_stall_after_work_starts_within_one_window_of_its_end():
    work = [1.0 if second < 50 else 0.0 for second in range(SECONDS)]
    since = SECONDS - 1 - stall_seconds([0] * SECONDS, work)[-1]
    assert 49 <= since <= 50


def test_resumed_work_ends_a_stall():
    work = [1.0 if second > 60 else 0.0 for second in range(SECONDS)]
    stalls = stall_seconds([0] * SECONDS, work)
    assert stalls[60] == 59.0
    assert stalls[61:] == [0.0] * (SECONDS - 61)


def test_work_is_not_measured_if_there_is_progress():
    detector = StallDetector(1.0)
    for second in range(10):
        detector.update(float(second), second, lambda: pytest.fail("asked"))


def test_reset_discards_all_samples():
    detector = StallDetector(1.0)
    for second in range(10):
        detector.update(float(second), 0, lambda: 0.0)
    assert detector.update(10.0, 0, lambda: 0.0) == 9.0
    detector.reset()
    assert detector.update(11.0, 0, lambda: 0.0) == 0.0
    assert detector.update(12.0, 0, lambda: 0.0) == 1.0


@pytest.mark.parametrize(
    ("arguments", "name"), [((0.0,), "window"), ((1.0, 0.0), "share"), ((float("nan"),), "window")]
)
def test_invalid_arguments_are_rejected(arguments: tuple[float, ...], name: str):
    with pytest.raises(ValueError, match=f"`{name}` must be above 0"):
        StallDetector(*arguments)
