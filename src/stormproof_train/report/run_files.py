"""What lies in a run's folder, read as data and never executed."""

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
    """A run as its folder has it, finished or not.

    Attributes:
        path: of the folder.
        record: ``run.json``.
        is_gone: whether ``run.json`` says that it runs, and its process is no more.
        summary: ``summary.json``; None before the run is finished.
        settings: ``config.yaml``; empty where it is missing.
        logged: ``metrics.csv``, by name.
        lacks_metrics: Whether ``metrics.csv`` is missing.
        findings: ``findings.jsonl``, in the order in which they came.
        evaluation: ``evaluation.json``; None where there is none.
        predictions: ``predictions.npz``; None where there are none.
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
        """Of the run."""
        return str(self.record.get("name") or self.path.name)


def read_run(path: Path) -> RunFiles:
    """Reads a run's folder, of a run that may still go on.

    Raises:
        UserError: if it is no run's folder, or a file in it is damaged.
    """
    record = _read_record(path)
    is_gone = record is not None and record["status"] == "running" and _is_gone(path)
    if is_gone:
        record = _read_record(path)  # it may have ended in between
    if record is None:
        problem = "is no folder of a run: it has no run.json" if path.is_dir() else "is not there"
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
    """Whether no attempt that lives owns the folder: of another machine's the heartbeat tells."""
    return not Lease.is_active(path)
