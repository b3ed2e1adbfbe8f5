"""A compression that is told to end."""

import signal

import pytest

from stormproof.signals import ASKING
from stormproof_train.compression.command import stopped_by_signals
from stormproof_train.errors import ExitCode, StopError


def _worked_until(number: signal.Signals) -> None:
    with stopped_by_signals():
        try:
            signal.raise_signal(number)
        except Exception as error:
            raise RuntimeError("the network cannot be exported") from error


@pytest.mark.parametrize("number", ASKING)
def test_it_ends_with_a_sentence_even_where_a_library_takes_each_exception_for_its_own(number: signal.Signals):
    before = {each: signal.getsignal(each) for each in ASKING}
    with pytest.raises(StopError, match=f"^stopped by {number.name}; the same command goes on$") as stopped:
        _worked_until(number)
    assert stopped.value.exit_code is ExitCode.START_AGAIN
    assert {each: signal.getsignal(each) for each in ASKING} == before
