from __future__ import annotations

import pytest

from stormproof.hang.standstill_detector import StallDetector

SECONDS = 100  # looked at, once each
NO_EXCUSE = [0.0] * SECONDS


def standstill_seconds(progress: list[int], work_per_second: list[float], window: float = 10.0) -> list[float]:
    """What a detector says, second by second."""
    detector = StallDetector(window)
    result, standstills = 0.0, []
    for second, (passed, worked) in enumerate(zip(progress, work_per_second, strict=True)):
        result += worked
        standstills.append(detector.update(float(second), passed, lambda result=result: result))
    return standstills


def test_it_counts_from_the_first_look_without_progress_once_the_window_is_over():
    standstills = standstill_seconds([min(second, 5) for second in range(SECONDS)], NO_EXCUSE)
    assert standstills[:16] == [0.0] * 16  # the last progress was seen at 5, and 6 was the first look without
    assert standstills[16:] == [float(second - 6) for second in range(16, SECONDS)]


def test_progress_is_no_standstill_however_slow():
    assert max(standstill_seconds([second // 10 for second in range(SECONDS)], NO_EXCUSE)) == 0.0


def test_work_without_progress_is_none_either():
    assert max(standstill_seconds([0] * SECONDS, [1.0] * SECONDS)) == 0.0
    assert max(standstill_seconds([0] * SECONDS, [0.06] * SECONDS)) == 0.0


def test_what_a_process_does_beside_is_no_work():
    assert standstill_seconds([0] * SECONDS, [0.02] * SECONDS)[-1] == SECONDS - 2
    bursts = [0.3 if second % 15 == 0 else 0.0 for second in range(SECONDS)]  # of a logger, every 15 s
    assert standstill_seconds([0] * SECONDS, bursts)[-1] == SECONDS - 2


def test_after_work_the_standstill_is_counted_from_within_the_window_after_its_end():
    work = [1.0 if second < 50 else 0.0 for second in range(SECONDS)]
    since = SECONDS - 1 - standstill_seconds([0] * SECONDS, work)[-1]
    assert 49 <= since <= 50


def test_work_that_comes_back_ends_a_standstill():
    work = [1.0 if second > 60 else 0.0 for second in range(SECONDS)]
    standstills = standstill_seconds([0] * SECONDS, work)
    assert standstills[60] == 59.0
    assert standstills[61:] == [0.0] * (SECONDS - 61)


def test_work_is_not_asked_for_where_there_is_progress():
    detector = StallDetector(1.0)
    for second in range(10):
        detector.update(float(second), second, lambda: pytest.fail("asked"))


def test_a_restart_forgets_what_was_seen():
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
def test_a_number_out_of_its_range_is_named(arguments: tuple[float, ...], name: str):
    with pytest.raises(ValueError, match=f"{name} is"):
        StallDetector(*arguments)
