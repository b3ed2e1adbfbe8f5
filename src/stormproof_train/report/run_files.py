"""Reads the files of a run's folder as data, without executing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from stormproof.checkpoint import Lease
from stormproof.finding import Finding
from stormproof_train.errors import UserError
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.evaluation.records import Evaluation
from stormproof_train.mapping_file import read_mapping
from stormproof_train.report.logged import Series, read_series
from stormproof_train.run.findings_file import read_findings
from stormproof_train.run.records import RunRecord, RunSummary

_SUMMARY_KEYS = ("headline", "test", "validation", "parameters", "steps", "seconds")


@dataclass(frozen=True)
class RunFiles:
    """Content of a run's folder, finished or not.

    Attributes:
        path: Path of the folder.
        record: Content of ``run.json``.
        is_gone: Whether ``run.json`` says that the run is active but its process is gone.
        summary: Content of ``summary.json``. None before the run finishes.
        settings: Content of ``config.yaml``. Empty if the file is missing.
        logged: Content of ``metrics.csv`` by name.
        lacks_metrics: Whether ``metrics.csv`` is missing.
        findings: Content of ``findings.jsonl``, in order of report.
        evaluation: Content of ``evaluation.json``. None if the file is missing.
        predictions: Content of ``predictions.npz``. None if the file is missing.
    """

    path: Path
    record: RunRecord
    is_gone: bool
    summary: RunSummary | None
    settings: Mapping[str, Any]
    logged: Mapping[str, Series]
    lacks_metrics: bool
    findings: list[Finding]
    evaluation: Evaluation | None
    predictions: Predictions | None

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.record.get("name") or self.path.name)


def read_run(path: Path) -> RunFiles:
    """Reads the folder of a run, which may still be active.

    Raises:
        UserError: If it is not the folder of a run, or one of its files is damaged.
    """
    record = _read_record(path)
    is_gone = record is not None and record["status"] == "running" and _is_gone(path)
    if is_gone:
        record = _read_record(path)  # the run may have ended meanwhile
    if record is None:
        problem = "is not the folder of a run: run.json is missing" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {problem}; give the folder of a run, such as runs/<name>")
    is_finished = record["status"] == "finished"
    predictions = path / "predictions.npz"
    return RunFiles(
        path=path,
        record=record,
        is_gone=is_gone and record["status"] == "running",
        summary=cast("RunSummary | None", read_mapping(path / "summary.json", _SUMMARY_KEYS) if is_finished else None),
        settings=read_mapping(path / "config.yaml") or {},
        logged=read_series(path / "metrics.csv"),
        lacks_metrics=not (path / "metrics.csv").exists(),
        findings=read_findings(path / "findings.jsonl"),
        evaluation=cast("Evaluation | None", read_mapping(path / "evaluation.json", ("samples", "headline"))),
        predictions=Predictions.load(predictions) if predictions.exists() else None,
    )


def _read_record(path: Path) -> RunRecord | None:
    return cast("RunRecord | None", read_mapping(path / "run.json", ("status", "attempts")))


def _is_gone(path: Path) -> bool:
    """Returns True if no live attempt owns the folder. For another host, the heartbeat decides."""
    return not Lease.is_active(path)
