"""A worker: takes a trial, runs it, tells what came of it, takes the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from stormproof_train.console import say, shown
from stormproof_train.errors import ExitCode, RunError, StorageError
from stormproof_train.run.folder import RunFolder
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.pruner import Judge
from stormproof_train.search.runner import Ended, Runner
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import in_short
from stormproof_train.search.trial_command import TrialWords
from stormproof_train.search.trial_cost import Account
from stormproof_train.search.trials import PAUSED, Record, Trials
from stormproof_train.search.work_queue import WorkQueue, job
from stormproof_train.search.worker_socket import Answer

FAILURES = 10
"""So many in a row end the search."""
TAKEN_OVER = "another worker has taken it over"
WAIT_SECONDS = 1.0
"""Between two looks for work, where others have all of it."""


class TooManyFailuresError(RunError):
    """Trial after trial failed."""

    exit_code = ExitCode.USER_MISTAKE


class Worker:
    """Works on a search until there is nothing left to do.

    Args:
        settings: of the search.
        folder: of the search.
        trials: all.
        words: makes those of a trial.
        queue: says which trial is next.
        judge: says whether a trial goes on.
        runner: runs them.
        ended: is called whenever work on a trial has ended.
    """

    def __init__(
        self,
        settings: Settings,
        folder: SearchFolder,
        trials: Trials,
        words: TrialWords,
        queue: WorkQueue,
        judge: Judge,
        runner: Runner,
        ended: Callable[[], None],
    ) -> None:
        self._settings, self._folder, self._trials, self._words = settings, folder, trials, words
        self._queue, self._judge, self._runner, self._ended = queue, judge, runner, ended
        self._since = datetime.now()  # noqa: DTZ005 (as Optuna writes it down)

    def work(self) -> None:
        """Works on trials until all have ended.

        Raises:
            StopError: if the process is told to end.
            TooManyFailuresError: if ten trials in a row failed.
            StorageError: if the disk fails a trial.
        """
        while not self._queue.is_over():
            number = self._queue.next()
            if number is None:
                self._runner.rest(WAIT_SECONDS)
                continue
            try:
                self._work_on(number)
            finally:
                self._queue.give_back(number)
            self._ended()

    def _work_on(self, number: int) -> None:
        record = self._trials.record(number)
        folder = self._folder.trials / job(number)
        words = [*self._words.of(record.params, folder), *self._words.asking(self._runner.address)]
        account = Account(self._trials, number)

        def answer(message: Mapping[str, Any]) -> Answer:
            if not self._queue.holds(number):
                return {"verdict": "pause", "reason": TAKEN_OVER}
            account.pass_on()
            return self._judge.answer(number, message)

        ended = self._runner.run(job(number), words, folder, answer)
        if not self._queue.holds(number):
            self._say(record, TAKEN_OVER)
            return
        account.pass_on(at_once=True)
        self._conclude(record, folder, ended)

    def _conclude(self, record: Record, folder: Path, ended: Ended) -> None:
        """Writes down what became of a trial, and says it."""
        if ended.code == ExitCode.FINISHED:
            summary = RunFolder(folder.parent, folder.name).finished()
            assert summary is not None
            self._complete(record, summary)
        elif ended.code == ExitCode.STORAGE:
            raise StorageError(f"trial {record.number} could not go on: {ended.why}")
        elif ended.answer is not None:
            if ended.answer["verdict"] == "prune":
                self._trials.tell(record.number, "pruned")
            lost = "" if ended.code == ExitCode.START_AGAIN else f" (and {ended.why}: it goes on from before)"
            self._say(record, f"{ended.answer['reason']}{lost}")
        elif ended.code == ExitCode.DIVERGED:
            self._end(record, "pruned", ended.why)
        else:
            self._end(record, "failed", ended.why)
            self._leave_if_all_fail(ended.why)

    def _leave_if_all_fail(self, why: str) -> None:
        """Whoever starts the search again has mended something: what failed before does not count."""
        ended = sorted((each for each in self._trials.all() if each.end is not None), key=lambda each: str(each.end))
        last = [each for each in ended if each.end is not None and each.end >= self._since][-FAILURES:]
        if len(last) == FAILURES and all(each.state == "failed" for each in last):
            raise TooManyFailuresError(
                f"{FAILURES} trials in a row failed, the last one ({in_short(last[-1].params)}) by: {why}"
            )

    def _complete(self, record: Record, summary: Mapping[str, Any]) -> None:
        measured = self._trials.record(record.number).notes.get("measured", {})
        measured |= {"parameters": summary["parameters"]}
        measured |= {f"val/{name}": value for name, value in summary["validation"].items()}
        self._trials.note(record.number, measured=measured, steps=summary["steps"], **{PAUSED: False, "reason": None})
        values = [each.of(measured) for each in self._settings.all_objectives]
        named = ", ".join(
            f"{each.name} {shown(value)}" for each, value in zip(self._settings.all_objectives, values, strict=True)
        )
        if any(
            each.as_loss(value) == float("inf")
            for each, value in zip(self._settings.all_objectives, values, strict=True)
        ):
            self._end(record, "pruned", f"{named}: not finite")
            return
        if len(values) == 1:
            self._trials.report(record.number, 1.0, values[0])
        self._trials.tell(record.number, "complete", values)
        self._say(record, f"{named} after {summary['steps']:,} steps")

    def _end(self, record: Record, state: Any, reason: str) -> None:
        self._trials.note(record.number, reason=reason)
        self._trials.tell(record.number, state)
        self._say(record, f"{state}: {reason}")

    def _say(self, record: Record, what: str) -> None:
        say(f"trial {record.number} ({in_short(record.params)}): {what}")
