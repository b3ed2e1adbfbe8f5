"""Runs a run to its end, however often it has to be started again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stormproof.checkpoint import Lease
from stormproof.signals.listener import Listener
from stormproof_train.console import say
from stormproof_train.errors import ExitCode, StopError
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.trial_process import TrialProcess, starts_again
from stormproof_train.search.worker_socket import Answer, WorkersEnd

FUTILE = 4
"""A run that ends so often in a row without having come further has failed."""


@dataclass(frozen=True)
class Ended:
    """What became of a run.

    Attributes:
        code: its exit code; below 0, the signal that killed it.
        sentence: what it said of its end.
        answer: that it was to pause or to leave, if it was.
    """

    code: int
    sentence: str
    answer: Answer | None = None

    @property
    def why(self) -> str:
        """The sentence, or what there is in its place."""
        if self.sentence:
            return self.sentence
        if self.code < 0:
            number = signal.Signals(-self.code)
            memory = ", as when memory runs out" if number == signal.SIGKILL else ""
            return f"its process was killed by {number.name}{memory}"
        return f"its process ended with code {self.code}, and said nothing"


class Runner:
    """Runs one run after the other, until this process is told to end.

    Args:
        folder: of the search.
        several: whether a run has ranks to start.
    """

    def __init__(self, folder: SearchFolder, *, several: bool) -> None:
        self._folder, self._several = folder, several
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

    def run(self, job: str, words: Sequence[str], folder: Path, answer: Callable[[Mapping[str, Any]], Answer]) -> Ended:
        """Runs a run.

        Args:
            job: its name, for the log.
            words: its command.
            folder: of the run.
            answer: whether it goes on, when it asks.

        Raises:
            StopError: if this process is told to end; the run has saved and left then.
        """
        began: list[int] = []
        while True:
            self._wait_until_free(folder)
            attempt = _Attempt(answer)
            process = TrialProcess(words, self._folder.log(job), several=self._several)
            self._line.serve(attempt.answer, lambda process=process: self._runs(process))
            self._leave_if_asked()
            if process.code != ExitCode.FINISHED and _is_held(folder):
                continue  # what an earlier worker has left behind was there first, and still saves
            ended = Ended(process.code, process.last_sentence(), attempt.last)
            began.append(attempt.began_at)
            in_vain = len(began) >= FUTILE and began[-1] <= began[-FUTILE]
            if not starts_again(ended.code) or ended.answer is not None or in_vain:
                return ended
            say(f"{job}: {ended.why}; it is started again")

    def _runs(self, process: TrialProcess) -> bool:
        if self._listener.received is not None:
            process.pass_on(self._listener.received)
        return process.runs()

    def _wait_until_free(self, folder: Path) -> None:
        """A run whose worker is gone saves and leaves within some steps."""
        while _is_held(folder):
            self.rest(0.1)

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

    def __init__(self, answer: Callable[[Mapping[str, Any]], Answer]) -> None:
        self._answer = answer
        self.began_at = 0
        self.last: Answer | None = None

    def answer(self, message: Mapping[str, Any]) -> Answer:
        """The answer to a message."""
        if message["kind"] == "begin":
            self.began_at = message["step"]
        given = self._answer(message)
        self.last = None if given["verdict"] == "go on" else given
        return given


def _is_held(folder: Path) -> bool:
    return any(Lease.is_held(each) for each in (folder, folder / "checkpoints"))
