"""Executes trials until a search is finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from stormproof_train.console import format_value, print_line
from stormproof_train.errors import ExitCode, RunError, StorageError
from stormproof_train.run.folder import RunFolder
from stormproof_train.run.records import RunSummary
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.pruner import TrialPruner
from stormproof_train.search.runner import Runner, RunOutcome
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import summarize_params
from stormproof_train.search.trial_command import TrialCommand
from stormproof_train.search.trials import TrialRecord, TrialStore
from stormproof_train.search.work_queue import WorkQueue, trial_name
from stormproof_train.search.worker_socket import Message, Reply

MAX_CONSECUTIVE_FAILURES = 10
"""Number of consecutive failures that end the search."""
TAKEN_OVER_REASON = "another worker has taken over the trial"
WAIT_SECONDS = 1.0
"""Seconds between two checks for work while other workers have all of it."""


class TooManyFailuresError(RunError):
    """Raised if too many consecutive trials failed."""

    exit_code = ExitCode.USER_MISTAKE


class Worker:
    """Works on a search until it is finished.

    Args:
        settings: Settings of the search.
        folder: Folder of the search.
        trials: Storage of the trials.
        command: Builds the commands of trials.
        queue: Assigns trials.
        pruner: Decides whether a trial continues.
        runner: Executes runs.
        on_trial_end: Called after each run of a trial.
    """

    def __init__(
        self,
        settings: Settings,
        folder: SearchFolder,
        trials: TrialStore,
        command: TrialCommand,
        queue: WorkQueue,
        pruner: TrialPruner,
        runner: Runner,
        on_trial_end: Callable[[], None],
    ) -> None:
        self._settings, self._folder, self._trials, self._command = settings, folder, trials, command
        self._queue, self._pruner, self._runner, self._on_trial_end = queue, pruner, runner, on_trial_end
        self._started_at = datetime.now()  # noqa: DTZ005 (the format of Optuna's end times)

    def run(self) -> None:
        """Works on trials until the search is finished.

        Raises:
            StopError: If the process receives a termination signal.
            TooManyFailuresError: If ten consecutive trials failed.
            StorageError: If a trial failed because of the file system.
        """
        while not self._queue.is_finished():
            number = self._queue.claim_next()
            if number is None:
                self._runner.wait(WAIT_SECONDS)
                continue
            try:
                self._run_trial(number)
            finally:
                self._queue.release(number)
            self._on_trial_end()

    def _run_trial(self, number: int) -> None:
        record = self._trials.record(number)
        folder = self._folder.trials_dir / trial_name(number)
        command = [
            *self._command.build(record.params, folder),
            *self._command.reporting_overrides(self._runner.address),
        ]
        cost = _TrialCost(self._trials, number)

        def handle_message(message: Message) -> Reply:
            if not self._queue.owns(number):
                return {"verdict": "pause", "reason": TAKEN_OVER_REASON}
            cost.update()
            return self._pruner.handle_message(number, message)

        outcome = self._runner.run(trial_name(number), command, folder, handle_message)
        if not self._queue.owns(number):
            self._log_trial(record, TAKEN_OVER_REASON)
            return
        cost.update(force=True)
        self._record_outcome(record, folder, outcome)

    def _record_outcome(self, record: TrialRecord, folder: Path, outcome: RunOutcome) -> None:
        """Stores and prints the outcome of a trial."""
        if outcome.exit_code == ExitCode.FINISHED:
            summary = RunFolder(folder.parent, folder.name).read_summary()
            assert summary is not None
            self._complete_trial(record, summary)
        elif outcome.exit_code == ExitCode.STORAGE:
            raise StorageError(f"trial {record.number} was stopped by a storage error: {outcome.reason}")
        elif outcome.stop_reply is not None:
            if outcome.stop_reply["verdict"] == "prune":
                self._trials.finish(record.number, "pruned")
            restart_note = (
                ""
                if outcome.exit_code == ExitCode.START_AGAIN
                else f" (and {outcome.reason}: it resumes from an earlier checkpoint)"
            )
            self._log_trial(record, f"{outcome.stop_reply['reason']}{restart_note}")
        elif outcome.exit_code == ExitCode.DIVERGED:
            self._end_trial(record, "pruned", outcome.reason)
        else:
            self._end_trial(record, "failed", outcome.reason)
            self._check_failures(outcome.reason)

    def _check_failures(self, reason: str) -> None:
        """Ends the search after ten consecutive failures. Failures before this worker started do not count."""
        ended_records = sorted(
            (record for record in self._trials.records() if record.end is not None), key=lambda record: str(record.end)
        )
        last_records = [
            record for record in ended_records if record.end is not None and record.end >= self._started_at
        ][-MAX_CONSECUTIVE_FAILURES:]
        if len(last_records) == MAX_CONSECUTIVE_FAILURES and all(record.state == "failed" for record in last_records):
            raise TooManyFailuresError(
                f"{MAX_CONSECUTIVE_FAILURES} consecutive trials failed, the last one "
                f"({summarize_params(last_records[-1].params)}) with: {reason}"
            )

    def _complete_trial(self, record: TrialRecord, summary: RunSummary) -> None:
        measurements = self._trials.record(record.number).notes.get("measured", {})
        measurements |= {"parameters": summary["parameters"]}
        measurements |= {f"val/{name}": value for name, value in summary["validation"].items()}
        self._trials.note(record.number, measured=measurements, steps=summary["steps"], paused=False, reason=None)
        values = [objective.get_value(measurements) for objective in self._settings.all_objectives]
        values_text = ", ".join(
            f"{objective.name} {format_value(value)}"
            for objective, value in zip(self._settings.all_objectives, values, strict=True)
        )
        if any(
            objective.as_loss(value) == float("inf")
            for objective, value in zip(self._settings.all_objectives, values, strict=True)
        ):
            self._end_trial(record, "pruned", f"{values_text}: not finite")
            return
        if len(values) == 1:
            self._trials.report(record.number, 1.0, values[0])
        self._trials.finish(record.number, "complete", values)
        self._log_trial(record, f"{values_text} after {summary['steps']:,} steps")

    def _end_trial(self, record: TrialRecord, state: Any, reason: str) -> None:
        self._trials.note(record.number, reason=reason)
        self._trials.finish(record.number, state)
        self._log_trial(record, f"{state}: {reason}")

    def _log_trial(self, record: TrialRecord, message: str) -> None:
        print_line(f"trial {record.number} ({summarize_params(record.params)}): {message}")


_MIN_INTERVAL_SECONDS = 5.0


class _TrialCost:
    """Records the duration of one attempt every few seconds, so that a kill loses little of it."""

    def __init__(self, trials: TrialStore, number: int) -> None:
        self._trials, self._number = trials, number
        self._last_update = time.monotonic()

    def update(self, *, force: bool = False) -> None:
        """Stores the elapsed time if the last update was some seconds ago, or with ``force``."""
        now = time.monotonic()
        elapsed = now - self._last_update
        if elapsed < _MIN_INTERVAL_SECONDS and not force:
            return
        notes = self._trials.record(self._number).notes
        gpu_seconds = notes.get("gpu_seconds", 0.0) + elapsed * notes.get("gpus", 0)
        self._trials.note(self._number, seconds=notes.get("seconds", 0.0) + elapsed, gpu_seconds=gpu_seconds)
        self._last_update = now
