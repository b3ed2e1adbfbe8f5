"""Runs a run to its end, however often it has to be started again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stormproof.checkpoint import Lease
from stormproof.signals import Listener
from stormproof_train.errors import ExitCode, StopError
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.judge import GO_ON, Judge
from stormproof_train.search.line import Answer, WorkersEnd
from stormproof_train.search.trial_process import TrialProcess, last_sentence, starts_again

FUTILE = 4
"""A run that ends so often in a row without having come further has failed."""
FREE_SECONDS = 120.0
"""How long the run that an earlier worker has left behind may take to save and leave."""


@dataclass(frozen=True)
class Ended:
    """What became of a run.

    Attributes:
        code: its exit code; below 0, the signal that killed it.
        sentence: what it said of its end.
        answer: that it was to pause or to leave, if it was.
        seconds: of all attempts.
    """

    code: int
    sentence: str
    answer: Answer | None
    seconds: float


class Runner:
    """Runs one run after the other, until this process is told to end.

    Args:
        folder: of the search.
        judge: says whether a trial goes on.
        several: whether a run has ranks to start.
    """

    def __init__(self, folder: SearchFolder, judge: Judge, *, several: bool) -> None:
        self._folder, self._judge, self._several = folder, judge, several
        self._listener = Listener()
        self._line = WorkersEnd()

    def __enter__(self) -> Self:
        """Listens for signals that ask this process to end."""
        self._listener.listen()
        return self

    def __exit__(self, *error: object) -> None:
        """Listens no more."""
        self._listener.stop()
        self._line.close()

    @property
    def address(self) -> str:
        """Where a run asks whether it goes on."""
        return self._line.address

    def rest(self, seconds: float) -> None:
        """Waits, or leaves if this process was told to."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._leave_if_asked()
            time.sleep(0.05)

    def run(self, job: str, words: Sequence[str], folder: Path, number: int | None = None) -> Ended:
        """Runs a run.

        Args:
            job: its name, for the log.
            words: its command.
            folder: of the run.
            number: of its trial, which asks whether it goes on; None for a run that asks nobody.

        Raises:
            StopError: if this process is told to end; the run has saved and left then.
        """
        begun: list[int] = []
        started = time.monotonic()
        while True:
            _wait_until_free(folder)
            attempt = _Attempt(self._judge, number)
            process = TrialProcess(words, self._folder.log(job), several=self._several)
            self._line.serve(attempt.answer, lambda process=process: self._runs(process))
            self._leave_if_asked()
            sentence = last_sentence(self._folder.log(job))
            ended = Ended(process.code, sentence, attempt.last, time.monotonic() - started)
            begun.append(attempt.began_at)
            in_vain = len(begun) >= FUTILE and begun[-1] <= begun[-FUTILE]
            if not starts_again(ended.code) or ended.answer is not None or in_vain:
                return ended

    def _runs(self, process: TrialProcess) -> bool:
        if self._listener.received is not None:
            process.ask_to_leave()
        return process.runs()

    def _leave_if_asked(self) -> None:
        if self._listener.received is not None:
            name = self._listener.received.name
            raise StopError(f"stopped by {name}; the same command goes on", ExitCode.START_AGAIN)


class _Attempt:
    """What a run has said since it was started, and what it was told.

    Attributes:
        began_at: the step at which it began; 0 if it has not come to that.
        last: that it was to pause or to leave.
    """

    def __init__(self, judge: Judge, number: int | None) -> None:
        self._judge, self._number = judge, number
        self.began_at = 0
        self.last: Answer | None = None

    def answer(self, message: Mapping[str, Any]) -> Answer:
        """The judge's."""
        assert self._number is not None
        if message["kind"] == "begin":
            self.began_at = message["step"]
        given = self._judge.answer(self._number, message)
        self.last = None if given == GO_ON else given
        return given


def _wait_until_free(folder: Path) -> None:
    end = time.monotonic() + FREE_SECONDS
    while any(Lease.is_held(each) for each in (folder, folder / "checkpoints")) and time.monotonic() < end:
        time.sleep(0.05)
