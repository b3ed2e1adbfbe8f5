"""Reads and writes the files of a run folder."""

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

from stormproof.checkpoint import Lease, Store, atomic_write
from stormproof.checkpoint.progress_file import PROGRESS_FILE_NAME, read_progress
from stormproof_train.config.identity import RunSpec, SettingRecord, compute_identity, list_differences
from stormproof_train.config.redaction import redact_text
from stormproof_train.config.settings import Resume
from stormproof_train.errors import ExitCode, UserError
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.mapping_file import read_mapping, read_unless_damaged, warn_once
from stormproof_train.path_errors import create_folders
from stormproof_train.run.records import AttemptRecord, RunRecord, RunSummary

_JOB_IDS = (
    "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",
    "TORCHELASTIC_RUN_ID", "JOB_COMPLETION_INDEX",
)  # fmt: skip

RESTORE_FIX = "restore a copy, or start a new run with name=…"
_RECORD_KEYS = {"status": str, "id": str, "identity": str, "attempts": list}
SUMMARY_KEYS = {
    "name": str, "test": dict, "validation": dict, "headline": str, "higher_is_better": bool, "parameters": int,
    "steps": int, "attempts": int, "seconds": float | int,
}  # fmt: skip
_SETTINGS_KEYS = {"seed": int, "runs_dir": str, "trainer": dict}
EVALUATION_KEYS = {"samples": int, "headline": dict}


class RunFolder:
    """Folder ``<runs_dir>/<name>/``: config.yaml, run.json, metrics.csv, checkpoints/, summary.json, logger files.

    All ranks may read. Only rank 0 may call :meth:`begin_attempt` and the methods that record something.
    """

    def __init__(self, runs_dir: Path, name: str) -> None:
        is_valid_name = name not in {"", "sweeps"} and not name.startswith(".") and not set(name) & set("/\\\0")
        if not is_valid_name or len(os.fsencode(name)) > 200:
            raise UserError(f"name={name!r} is not a valid folder name. Use letters, digits, - and _.")
        self.name = name
        self.path = runs_dir / name
        self._lease: Lease | None = None
        self._is_reopened = False
        self._record: RunRecord  # set by begin_attempt

    @property
    def checkpoints(self) -> Path:
        """Folder for checkpoints."""
        return self.path / "checkpoints"

    @property
    def attempt(self) -> int:
        """Number of the attempt that owns the folder, counted from 1."""
        return len(self._record["attempts"])

    @property
    def run_id(self) -> str:
        """Random ID that distinguishes runs of the same name: 8 hex digits."""
        return self._record["id"]

    @property
    def has_trained(self) -> bool:
        """True if an earlier attempt started training, so that there is progress to lose."""
        record = self.read_record()
        return record is not None and any(  # the last step of a killed attempt is unknown
            attempt["first_step"] not in {None, attempt["last_step"]} for attempt in record["attempts"]
        )

    @property
    def previous_seconds(self) -> float:
        """Total duration of the earlier attempts."""
        spans = [(attempt["start"], attempt["end"]) for attempt in self._record["attempts"][:-1]]
        return sum((_parse_time(end) - _parse_time(start)).total_seconds() for start, end in spans if end is not None)

    def read_record(self) -> RunRecord | None:
        """Returns the record of the run."""
        return read_record(self.path)

    def read_summary(self) -> RunSummary | None:
        """Returns the summary of a finished run. None if the run has not finished, or its summary is lost."""
        record = self.read_record()
        if self._is_reopened or record is None or record["status"] != "finished":
            return None
        summary = _read_json(self.path / "summary.json", SUMMARY_KEYS)
        if summary is None:
            warn_once(f"{self.path / 'summary.json'} is missing or damaged. The command of the run writes it again.")
        # a copied folder has another name
        return None if summary is None else cast("RunSummary", {**summary, "name": self.name})

    def reopen_if_incomplete(self, summary: RunSummary) -> bool:
        """Lets a finished run be evaluated again if it has lost a file and has checkpoints. Returns whether it does."""
        required = {"run.json": _RECORD_KEYS, "config.yaml": _SETTINGS_KEYS, "evaluation.json": EVALUATION_KEYS}
        lost = [name for name, keys in required.items() if _read_json(self.path / name, keys) is None]
        if read_unless_damaged(lambda: Predictions.load(self.path / "predictions.npz")) is None:
            lost.append("predictions.npz")
        if not summary.get("intervals"):  # the test has written no results
            lost = [name for name in lost if name not in {"evaluation.json", "predictions.npz"}]
        self._is_reopened = bool(lost) and bool(Store(self.checkpoints).read_checkpoints())
        if lost:
            action = "The run is evaluated again" if self._is_reopened else "Without checkpoints it cannot be restored"
            warn_once(f"{self.path} has finished, but {', '.join(lost)} is missing or damaged. {action}.")
        return self._is_reopened

    def remove_temporary_files(self) -> None:
        """Removes files that a killed process did not complete."""
        for file in self.path.glob(".[!l]*.tmp"):  # the lease has its own
            file.unlink(missing_ok=True)

    def check_startable(self, spec: RunSpec, resume: Resume) -> None:
        """Raises an error if the run cannot be started in this folder.

        Args:
            spec: Spec of the run to start.
            resume: ``never`` rejects a run that has trained, is running or has finished.

        Raises:
            UserError: If the folder belongs to another run, or ``resume`` excludes it.
        """
        record = self.read_record()
        if record is None:
            if self.path.exists() and any(self.path.iterdir()) and not self._has_only_own_files():
                raise UserError(f"{self.path} exists and is not a run folder. Choose another name (name=…).")
            return
        # only acquiring the lease shows for certain whether another attempt owns the folder
        is_running = self._lease is None and Lease.is_active(self.path)
        if record["status"] != "finished" and not is_running and not self.has_trained and resume != "must":
            return  # there is no progress to lose
        if record["identity"] != spec.identity:
            changes = list_differences(self.read_settings(), spec.settings)
            changes_text = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
            raise UserError(f"the run {self.path} has other settings: {changes_text}. Choose another name (name=…).")
        if resume == "never":
            raise UserError(f"resume=never, but the run {self.path} exists. Choose another name (name=…).")

    def begin_attempt(self, spec: RunSpec, resume: Resume) -> None:
        """Acquires the folder and records a new attempt. Completes the record of a killed attempt.

        Raises:
            UserError: If the folder cannot be created, or the run cannot be started.
            FolderTakenError: If another attempt owns the folder.
        """
        self.check_startable(spec, resume)
        create_folders(f"runs_dir={self.path.parent}: the run folder cannot be created", self.path, self.checkpoints)
        self._lease = Lease(self.path)
        try:
            self.remove_temporary_files()
            self._write_attempt(spec, resume)
        except BaseException:
            self._lease.release()
            raise

    def _write_attempt(self, spec: RunSpec, resume: Resume) -> None:
        # checks again, because an attempt may have ended between the first check and the lease
        self.check_startable(spec, resume)
        if self.read_summary() is not None:
            raise UserError(
                f"another process has just finished the run {self.path}; the same command now prints its results"
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
        self._record["attempts"].append(_new_attempt(len(self._record["attempts"]) + 1))
        self._commit_record()

    def _complete_attempt(self, attempt: AttemptRecord) -> None:
        """Adds the last step and the end time that a killed attempt could not record."""
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
        """World size, and batches per step on each rank, of the first attempt that trained. None before that."""
        record = self.read_record()
        for attempt in record["attempts"] if record else []:
            ranks, accumulated = attempt.get("ranks"), attempt.get("accumulated")
            if ranks and accumulated:
                return ranks, accumulated
        return None

    def _read_hang_reason(self, since: datetime) -> str | None:
        """Returns the reason that another rank recorded for an attempt whose rank 0 was stopped, or None."""
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
        """Records that training has started, so that there is progress to lose.

        Args:
            step: Step at which training starts or resumes.
            world_size: World size.
            accumulate_grad_batches: Batches per step on each rank.
            skip_reasons: Reasons why newer checkpoints were skipped, by name.
        """
        attempt = self._record["attempts"][-1]
        attempt.update({"first_step": step, "ranks": world_size, "accumulated": accumulate_grad_batches})
        if skip_reasons:
            attempt["skipped"] = dict(skip_reasons)
        self._commit_record()

    def record_finish(self, summary: RunSummary, last_step: int, changed: list[SettingRecord] | None) -> None:
        """Writes the summary, records that the run has finished, and releases the folder.

        Args:
            summary: Content of ``summary.json``.
            last_step: Number of optimizer steps.
            changed: Settings that differ from the defaults, for reports. None without a report.
        """
        assert self._lease is not None
        self._lease.check()
        if changed is not None:
            self._record["changed"] = changed
        _write_file(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")
        self.record_end("finished", None, ExitCode.FINISHED, last_step)

    def record_hang(self, reason: str, last_step: int) -> None:
        """Records that the attempt hangs and is about to be ended, and releases the folder."""
        self.record_end("failed", reason, ExitCode.HANG, last_step)

    def record_end(self, status: str, reason: str | None, code: ExitCode, last_step: int | None) -> None:
        """Records the status of the run and why the attempt ended, and releases the folder."""
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
        """Returns the content of ``config.yaml``.

        Raises:
            UserError: If the file is missing or cannot be read.
        """
        path = self.path / "config.yaml"
        content = read_mapping(path, fix=RESTORE_FIX)
        if content is None:
            raise UserError(f"{path}, which contains the settings of the run, is missing: {RESTORE_FIX}")
        return content

    def _has_only_own_files(self) -> bool:
        """Returns True if the folder contains only files of an attempt that was killed before it wrote run.json."""
        return all(
            entry.name in {"lease.json", "config.yaml", "checkpoints"} or entry.name.startswith(".")
            for entry in self.path.iterdir()
        )


def read_record(path: Path) -> RunRecord | None:
    """Returns the content of a ``run.json``, or None before the first attempt.

    If the file is missing or damaged, the record is derived from checkpoints, config and summary.
    """
    record = _read_json(path / "run.json", _RECORD_KEYS)
    return cast("RunRecord | None", record) or _derive_record(path)


def _derive_record(path: Path) -> RunRecord | None:
    """Returns the record of a run that has lost its ``run.json``. None if ``path`` is not the folder of a run."""
    checkpoints = Store(path / "checkpoints").read_checkpoints() if (path / "checkpoints").is_dir() else []
    settings = _read_json(path / "config.yaml", _SETTINGS_KEYS)
    summary = _read_json(path / "summary.json", SUMMARY_KEYS)
    if not checkpoints and settings is None and summary is None:
        return None
    has_trained = any(checkpoint.step for checkpoint in checkpoints)
    if has_trained or summary:  # otherwise the first attempt was killed before it wrote the file
        warn_once(f"{path / 'run.json'} is missing or damaged. Other files replace it, without the list of attempts.")
    identities = [checkpoint.identity for checkpoint in checkpoints if checkpoint.identity is not None]
    wandb_ids = sorted(entry.name.rpartition("-")[2] for entry in path.glob("wandb/*run-*"))
    attempt: AttemptRecord = {**_new_attempt(1), "host": "", "pid": 0, "jobs": {}, "reason": "run.json was lost"}
    attempt["accumulated"] = (settings or {"trainer": {}})["trainer"].get("accumulate_grad_batches", 1)
    if checkpoints:
        attempt["ranks"] = checkpoints[0].world_size or None
        attempt["start"], attempt["end"] = (_format_time(checkpoints[index].time) for index in (0, -1))
    if has_trained:
        attempt["first_step"], attempt["last_step"] = 0, checkpoints[-1].step
    return {
        "name": path.name,
        "id": wandb_ids[-1] if wandb_ids else secrets.token_hex(4),
        "attempts": [attempt],
        "identity": identities[-1] if identities else compute_identity(settings) if settings else "",
        "status": "running" if summary is None else "finished",
    }


def read_with_copy(path: Path, keys: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what :func:`write_with_copy` wrote. None if both files are missing or damaged."""
    return _read_json(path, keys) or _read_json(path.with_name(f".{path.name}.copy"), keys)


def write_with_copy(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file and a hidden copy, for content that no other file contains."""
    for file in (path.with_name(f".{path.name}.copy"), path):
        _write_file(file, f"{json.dumps(content, indent=1)}\n")


def _new_attempt(number: int) -> AttemptRecord:
    return {
        "number": number, "host": socket.gethostname(), "pid": os.getpid(), "ranks": None, "accumulated": None,
        "jobs": {key: os.environ[key] for key in _JOB_IDS if key in os.environ}, "start": _format_time(), "end": None,
        "first_step": None, "last_step": None, "reason": None, "code": None,
    }  # fmt: skip


def _read_json(path: Path, keys: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the content of a file that a run can do without. None if it is missing or damaged."""
    return read_unless_damaged(lambda: read_mapping(path, keys))


def _write_file(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def _format_time(seconds: float | None = None) -> str:
    """Formats a time (seconds since the epoch), or the current time, for run.json."""
    timestamp = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return timestamp.isoformat(timespec="milliseconds")


def _parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text)
