"""Reads the files of a run's folder as data, without executing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stormproof.checkpoint import Lease
from stormproof.finding import Finding
from stormproof_train.errors import UserError
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.evaluation.records import Evaluation
from stormproof_train.mapping_file import read_mapping, read_unless_damaged
from stormproof_train.report.logged import Series, read_series
from stormproof_train.run.findings_file import read_findings
from stormproof_train.run.folder import EVALUATION_KEYS, SUMMARY_KEYS, read_record
from stormproof_train.run.records import RunRecord, RunSummary


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
        problems: Sentences about damaged files.
        lacks_metrics: Whether ``metrics.csv`` is missing.
        findings: Content of ``findings.jsonl``, in order of report.
        evaluation: Content of ``evaluation.json``. None if the file is missing or damaged.
        predictions: Content of ``predictions.npz``. None if the file is missing or damaged.
    """

    path: Path
    record: RunRecord
    is_gone: bool
    summary: RunSummary | None
    settings: Mapping[str, Any]
    logged: Mapping[str, Series]
    problems: list[str]
    lacks_metrics: bool
    findings: list[Finding]
    evaluation: Evaluation | None
    predictions: Predictions | None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.absolute().name


def read_run(path: Path) -> RunFiles:
    """Reads the folder of a run, which may still be active.

    Raises:
        UserError: If it is not the folder of a run, or one of its files cannot be read.
    """
    record = read_record(path)
    is_gone = record is not None and record["status"] == "running" and not Lease.is_active(path)
    if is_gone:
        record = read_record(path)  # the run may have ended meanwhile
    if record is None:
        problem = "is not the folder of a run: run.json is missing" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {problem}; give the folder of a run, such as runs/<name>")
    problems: list[str] = []

    def read(name: str, keys: Mapping[str, Any] | None = None) -> Any:
        fix = "it is left out"
        return read_unless_damaged(lambda: read_mapping(path / name, keys or (), fix), problems)

    summary = read("summary.json", SUMMARY_KEYS) if record["status"] == "finished" else None
    predictions = path / "predictions.npz"
    if summary and summary.get("intervals"):
        tested_files = (predictions, path / "evaluation.json")
        problems += [f"{file.name} is missing" for file in tested_files if not file.exists()]
    return RunFiles(
        path=path,
        record=record,
        is_gone=is_gone and record["status"] == "running",
        summary=summary,
        settings=read("config.yaml") or {},
        logged=read_unless_damaged(lambda: read_series(path / "metrics.csv"), problems) or {},
        problems=problems,
        lacks_metrics=not (path / "metrics.csv").exists(),
        findings=read_findings(path / "findings.jsonl"),
        evaluation=read("evaluation.json", EVALUATION_KEYS),
        predictions=(
            read_unless_damaged(lambda: Predictions.load(predictions), problems) if predictions.exists() else None
        ),
    )
