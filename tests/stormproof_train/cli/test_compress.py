"""A compression that is told to end, and what it says at its beginning."""

import signal
from typing import Any

import pytest

from stormproof.signals.listener import TERMINATION_SIGNALS
from stormproof_train.cli import compress
from stormproof_train.cli.compress import stop_on_signals
from stormproof_train.compression.settings import Settings
from stormproof_train.errors import ExitCode, StopError


def _worked_until(number: signal.Signals) -> None:
    with stop_on_signals():
        try:
            signal.raise_signal(number)
        except Exception as error:
            raise RuntimeError("the network cannot be exported") from error


@pytest.mark.parametrize("number", TERMINATION_SIGNALS)
def test_it_ends_with_a_sentence_even_where_a_library_takes_each_exception_for_its_own(number: signal.Signals):
    before = {signal_number: signal.getsignal(signal_number) for signal_number in TERMINATION_SIGNALS}
    with pytest.raises(
        StopError, match=f"^stopped by {number.name}; the same command resumes the compression$"
    ) as stopped:
        _worked_until(number)
    assert stopped.value.exit_code is ExitCode.START_AGAIN
    assert {signal_number: signal.getsignal(signal_number) for signal_number in TERMINATION_SIGNALS} == before


@pytest.mark.parametrize(
    ("has", "methods", "told"),
    [
        (True, None, ""),
        (
            False,
            None,
            (
                "this processor: it has no int8 instructions, so int8 is hardly faster; "
                "set methods= without int8 to skip it"
            ),
        ),
        (None, None, "this processor: support for int8 instructions is unknown; set methods= without int8 to skip it"),
        (False, ["prune"], ""),
    ],
)
def test_a_processor_without_instructions_for_int8_is_told_before_anything_is_done(
    has: bool | None, methods: Any, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(compress, "cpu_has_vnni", lambda: has)
    compress._warn_if_int8_is_slow(Settings("runs/a", budget="1pp", methods=methods))
    assert capsys.readouterr().out.replace("\n", " ").strip() == told
