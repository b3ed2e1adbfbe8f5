"""What becomes of a run, in words."""

import pytest

from stormproof_train.search.runner import Ended


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        (Ended(2, "model: too wide"), "model: too wide"),
        (Ended(-9, ""), "its process was killed by SIGKILL, as when memory runs out"),
        (Ended(-11, ""), "its process was killed by SIGSEGV"),
        (Ended(3, ""), "its process ended with code 3, and said nothing"),
    ],
)
def test_why_a_run_ended_is_said_even_where_it_said_nothing(ended: Ended, why: str):
    assert ended.why == why
