"""A run is a folder: what it holds, and who may write to it."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import yaml

from stormproof.checkpoint import Lease, atomic_write
from stormproof.checkpoint.folder_ownership import PROGRESS_FILE_NAME
from stormproof.checkpoint.progress_file import read_progress
from stormproof_train.broken_links import describe_path_error
from stormproof_train.config.identity import RunSpec, list_differences
from stormproof_train.config.plan import Resume
from stormproof_train.config.redaction import redact_text
from stormproof_train.errors import STORAGE_FAULTS, ExitCode, UserError
from stormproof_train.mapping_file import read_mapping
from stormproof_train.run.records import AttemptRecord, RunRecord, RunSummary

_JOB_IDS = (
    "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",
    "TORCHELASTIC_RUN_ID", "JOB_COMPLETION_INDEX",
)  # fmt: skip

RESTORE_FIX = "put a copy back, or train under another name (name=…)"
# what is read from a finished run's summary
_SUMMARY_KEYS = (
    "name",
    "test",
    "validation",
    "headline",
    "higher_is_better",
    "parameters",
    "steps",
    "attempts",
    "seconds",
)


class RunFolder:
    """``<runs_dir>/<name>/``: config.yaml, run.json, metrics.csv, checkpoints/, summary.json, the logger's files.

    Reading is every rank's; :meth:`begin_attempt` and what follows it are rank 0's alone.

    Args:
        runs_dir: the folder of all runs.
        name: the run's own folder in it.
    """

    def __init__(self, runs_dir: Path, name: str) -> None:
        is_valid_name = name not in {"", "sweeps"} and not name.startswith(".") and not set(name) & set("/\\\0")
        if not is_valid_name or len(os.fsencode(name)) > 200:
            raise UserError(f"name={name!r} cannot be a folder's name: use letters, digits, - and _")
        self.name = name
        self.path = runs_dir / name
        self._lease: Lease | None = None
        self._record: RunRecord  # set by begin_attempt

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def attempt(self) -> int:
        """The number of the attempt that owns the folder, from 1."""
        return len(self._record["attempts"])

    @property
    def run_id(self) -> str:
        """What tells this run from another that once had its name: 8 hex digits."""
        return self._record["id"]

    @property
    def has_trained(self) -> bool:
        """Whether an earlier attempt began to train, so that there is something to lose."""
        record = self.read_record()
        return record is not None and any(map(_has_trained, record["attempts"]))

    @property
    def previous_seconds(self) -> float:
        """How long the earlier attempts took."""
        spans = [(attempt["start"], attempt["end"]) for attempt in self._record["attempts"][:-1]]
        return sum((_parse_time(end) - _parse_time(start)).total_seconds() for start, end in spans if end is not None)

    def read_record(self) -> RunRecord | None:
        """``run.json``, or None where no attempt has begun yet."""
        record = read_mapping(self.path / "run.json", ("status", "id", "identity", "attempts"), RESTORE_FIX)
        return cast("RunRecord | None", record)

    def read_summary(self) -> RunSummary | None:
        """The summary of a finished run, else None."""
        record = self.read_record()
        if record is None or record["status"] != "finished":
            return None
        summary = read_mapping(self.path / "summary.json", _SUMMARY_KEYS, RESTORE_FIX)
        if summary is None:
            raise UserError(
                f"{self.path} says it is finished and has no summary.json: start under another name (name=…)"
            )
        return cast("RunSummary", summary)

    def check_startable(self, spec: RunSpec, resume: Resume) -> None:
        """Says why this run cannot be started here, if it cannot.

        Args:
            spec: of the run to start.
            resume: ``never`` refuses a folder that is there, ``must`` one that is not.

        Raises:
            UserError: another run's folder, or one that ``resume`` excludes.
        """
        record = self.read_record()
        if record is None:
            if self.path.exists() and any(self.path.iterdir()) and not self._has_only_own_files():
                raise UserError(f"{self.path} is there and is no run of ours: give this one another name (name=…)")
            if resume == "must":
                raise UserError(f"resume=must, and there is no run {self.path} to go on with")
            return
        is_unfinished = record["status"] != "finished" and not self._is_running()
        if is_unfinished and not self.has_trained and resume != "must":
            return  # nothing to lose, whatever the mistake was that ended it
        if record["identity"] != spec.identity:
            changes = list_differences(self.read_settings(), spec.settings)
            changes_text = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
            raise UserError(f"the run {self.path} is another one: {changes_text}. Give this one another name (name=…)")
        if resume == "never":
            raise UserError(f"resume=never, and there is a run {self.path}: give this one another name (name=…)")

    def begin_attempt(self, spec: RunSpec, resume: Resume) -> None:
        """Takes the folder and writes down a new attempt, and how far the one before came if it could not say.

        Raises:
            UserError: if the folder cannot be made, or the run cannot be started.
            FolderTakenError: if another attempt owns it.
        """
        self.check_startable(spec, resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            if error.errno in STORAGE_FAULTS:
                raise
            raise UserError(
                f"runs_dir={self.path.parent}: the run's folder cannot be made there: "
                f"{describe_path_error(self.path, error)}"
            ) from error
        self._lease = Lease(self.path)
        try:
            self._write_attempt(spec, resume)
        except BaseException:
            self._lease.release()
            raise

    def _write_attempt(self, spec: RunSpec, resume: Resume) -> None:
        # again: an attempt may have ended between the first check and the lease
        self.check_startable(spec, resume)
        if self.read_summary() is not None:
            raise UserError(
                f"another process has just finished the run {self.path}; the same command now shows its table"
            )
        record = self.read_record()
        self._record = {
            "name": self.name,
            "id": record["id"] if record else secrets.token_hex(4),
            "attempts": record["attempts"] if record else [],
            "identity": spec.identity,
            "status": "running",
        }
        if self._record["attempts"]:
            self._complete_attempt(self._record["attempts"][-1])
        _write_file(self.path / "config.yaml", yaml.safe_dump(dict(spec.settings), sort_keys=False))
        self._record["attempts"].append(
            {
                "number": len(self._record["attempts"]) + 1,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "ranks": None,
                "accumulated": None,
                "jobs": {key: os.environ[key] for key in _JOB_IDS if key in os.environ},
                "start": _format_time(),
                "end": None,
                "first_step": None,
                "last_step": None,
                "reason": None,
                "code": None,
            }
        )
        self._commit_record()

    def _complete_attempt(self, attempt: AttemptRecord) -> None:
        """Fills in what an attempt that was killed could not write: as far as it came, and when that was."""
        if attempt["end"] is None:
            progress = read_progress(self.checkpoints / PROGRESS_FILE_NAME)
            hang_reason = self._read_hang_reason(_parse_time(attempt["start"]))
            attempt["reason"] = hang_reason or "it was killed"
            if hang_reason is not None:
                attempt["code"] = int(ExitCode.HANG)
            attempt["end"] = attempt["start"] if progress is None else _format_time(progress.time)
            if progress is not None and attempt["first_step"] is not None:
                attempt["last_step"] = progress.step

    @property
    def initial_sharding(self) -> tuple[int, int] | None:
        """The ranks of the first attempt that began to train, and the batches of a step on each; None before any."""
        record = self.read_record()
        for attempt in record["attempts"] if record else []:
            ranks, accumulated = attempt.get("ranks"), attempt.get("accumulated")
            if ranks and accumulated:
                return ranks, accumulated
        return None

    def _read_hang_reason(self, since: datetime) -> str | None:
        """What another rank wrote of an attempt whose rank 0 was stopped; None where none did."""
        for report in sorted(self.path.glob("hang-rank*.txt")):
            if report.stat().st_mtime > since.timestamp():
                return report.read_text(errors="replace").partition("\n")[0]
        return None

    def record_training_start(
        self,
        step: int,
        world_size: int,
        accumulate_grad_batches: int,
        skip_reasons: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Writes down that from here on there is something to lose.

        Args:
            step: at which it begins.
            world_size: that share the work.
            accumulate_grad_batches: batches of a step on each of them.
            skip_reasons: Reasons why newer checkpoints were skipped, by name.
        """
        attempt = self._record["attempts"][-1]
        attempt.update({"first_step": step, "ranks": world_size, "accumulated": accumulate_grad_batches})
        if skip_reasons:
            attempt["skipped"] = dict(skip_reasons)
        self._commit_record()

    def record_finish(self, summary: RunSummary, last_step: int) -> None:
        """Writes the summary, then that the run is finished, and gives the folder back."""
        assert self._lease is not None
        self._lease.check()
        _write_file(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")
        self._end_attempt("finished", last_step, None, ExitCode.FINISHED)

    def record_failure(self, reason: str, code: ExitCode, last_step: int | None) -> None:
        """Writes down why the attempt ended, and gives the folder back."""
        self._end_attempt("failed", last_step, reason, code)

    def record_preemption(self, reason: str, code: ExitCode, last_step: int | None) -> None:
        """Writes down that the attempt was told to end and can go on, and gives the folder back."""
        self._end_attempt("preempted", last_step, reason, code)

    def record_hang(self, reason: str, last_step: int) -> None:
        """Writes down that the attempt hangs and is about to be ended, and gives the folder back."""
        self._end_attempt("failed", last_step, reason, ExitCode.HANG)

    def _end_attempt(self, status: str, last_step: int | None, reason: str | None, code: ExitCode) -> None:
        assert self._lease is not None
        self._record["status"] = status
        attempt = self._record["attempts"][-1]
        redacted_reason = None if reason is None else redact_text(reason)
        attempt.update(
            {"end": _format_time(), "reason": redacted_reason, "code": int(code), "preempted": status == "preempted"}
        )
        if attempt["first_step"] is not None:
            attempt["last_step"] = last_step
        try:
            self._commit_record()
        finally:
            self._lease.release()

    def _commit_record(self) -> None:
        assert self._lease is not None
        self._lease.check()
        _write_file(self.path / "run.json", json.dumps(self._record, indent=2) + "\n")

    def read_settings(self) -> dict[str, Any]:
        """``config.yaml``.

        Raises:
            UserError: if it cannot be read.
        """
        path = self.path / "config.yaml"
        content = read_mapping(path, fix=RESTORE_FIX)
        if content is None:
            raise UserError(f"{path}, which says what run this is, is gone: {RESTORE_FIX}")
        return content

    def _is_running(self) -> bool:
        """Whether another attempt seems to own the folder; taking the lease will tell for sure."""
        return self._lease is None and Lease.is_active(self.path)

    def _has_only_own_files(self) -> bool:
        """An attempt that was killed before run.json was there leaves these."""
        return all(
            entry.name in {"lease.json", "config.yaml", "checkpoints"} or entry.name.startswith(".")
            for entry in self.path.iterdir()
        )


def _has_trained(attempt: AttemptRecord) -> bool:
    """Whether there is something to lose: an attempt that was killed cannot say how far it came."""
    return attempt["first_step"] is not None and attempt["last_step"] != attempt["first_step"]


def _write_file(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def _format_time(seconds: float | None = None) -> str:
    """That moment (seconds since the epoch), or this one, as run.json has it."""
    timestamp = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return timestamp.isoformat(timespec="milliseconds")


def _parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text)
