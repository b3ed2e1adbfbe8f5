"""What becomes of a run, in words."""

import pytest

from stormproof_train.search.runner import RunOutcome


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        (RunOutcome(2, "model: too wide"), "model: too wide"),
        (RunOutcome(-9, ""), "its process was killed by SIGKILL, possibly because memory ran out"),
        (RunOutcome(-11, ""), "its process was killed by SIGSEGV"),
        (RunOutcome(3, ""), "its process ended with code 3 and without a message"),
    ],
)
def test_why_a_run_ended_is_said_even_where_it_said_nothing(ended: RunOutcome, why: str):
    assert ended.reason == why
