"""A run that is started again and again, and comes no further."""

from __future__ import annotations

from typing import Any

import pytest

from stormproof_train.errors import CrashLoopError, ExitCode
from stormproof_train.run.resume import check_restart_budget


class Attempts(list[dict[str, Any]]):
    """As ``run.json`` has them."""

    def add(self, first_step: int | None, code: ExitCode | None = ExitCode.FAILED, *, preempted: bool = False) -> None:
        """One that went on from that step; with no code it was killed."""
        self.append(
            {
                "number": len(self) + 1,
                "first_step": first_step,
                "code": code,
                "preempted": preempted,
                "reason": None if code is None else "it broke",
            }
        )

    def are_enough(self, step: int, limit: int | None = 3) -> bool:
        try:
            check_restart_budget(self, step, limit, "runs/mine")
        except CrashLoopError:
            return True
        return False


@pytest.fixture
def attempts() -> Attempts:
    return Attempts()


@pytest.mark.parametrize("code", [ExitCode.FAILED, None, ExitCode.DIVERGED, ExitCode.STORAGE, ExitCode.START_AGAIN])
@pytest.mark.parametrize("first_step", [0, None], ids=["trained", "never trained"])
def test_after_three_restarts_that_came_no_further_a_fourth_is_refused(
    first_step: int | None, code: ExitCode | None, attempts: Attempts
):
    """Ranks that never agree too, though their code says: start again."""
    for _ in range(4):
        assert not attempts.are_enough(0)
        attempts.add(first_step, code)
    assert attempts.are_enough(0)
    assert not attempts.are_enough(0, limit=4)
    assert not attempts.are_enough(0, limit=None)
    assert attempts.are_enough(10) == (first_step is None)  # else there is a new checkpoint after all


def test_the_sentence_says_why_and_what_to_do(attempts: Attempts):
    for _ in range(4):
        attempts.add(0)
    with pytest.raises(
        CrashLoopError,
        match=r"the run runs/mine was restarted 3 times without progress after the checkpoint of step 0 "
        r"\(last reason: it broke\)\. Correct the cause, then start the run with max_restarts_without_progress=null",
    ) as refused:
        check_restart_budget(attempts, 0, 3, "runs/mine")
    assert refused.value.exit_code == 77


def test_whoever_comes_further_each_time_may_crash_as_often_as_they_like(attempts: Attempts):
    for step in (0, 0, 0, 10, 10, 20, 20, 20):
        assert not attempts.are_enough(step)
        attempts.add(step)
    assert attempts.are_enough(20)
    assert not attempts.are_enough(30)


@pytest.mark.parametrize(
    "stopped",
    [
        {"code": ExitCode.START_AGAIN, "preempted": True},
        {"code": ExitCode.INTERRUPTED},
        {"code": ExitCode.TERMINATED},
        {"code": ExitCode.USER_MISTAKE},
    ],
    ids=["preempted", "Ctrl-C", "SIGTERM", "a mistake"],
)
def test_what_somebody_stopped_is_no_crash(stopped: dict[str, Any], attempts: Attempts):
    for _ in range(6):
        attempts.add(0, **stopped)
    assert not attempts.are_enough(0)
    for _ in range(3):
        attempts.add(0)
        attempts.add(0, **stopped)
    assert attempts.are_enough(0)


def test_attempts_of_an_earlier_release_which_wrote_no_code_count_as_crashes(attempts: Attempts):
    attempts.extend({"number": number, "first_step": 0, "reason": "it broke"} for number in range(1, 5))
    assert attempts.are_enough(0)
