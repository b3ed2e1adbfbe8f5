"""Publishes findings to the log, a file, and Weights & Biases if it is a logger."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stormproof.event_log import log_event
from stormproof.finding import Finding, Severity

COLUMNS = ["severity", "problem", "where", "since_step", "step", "evidence", "advice", "explains"]
LOG_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.ERROR,
}


def log_finding(finding: Finding) -> None:
    """Logs a finding and attaches it to the log record as ``finding``."""
    log_event(__name__, str(finding), LOG_LEVELS[finding.severity], finding=finding)


def append_finding(path: Path, finding: Finding) -> None:
    """One line of a file; it begins a new one where a kill cut the last one off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
        is_truncated = size > 0 and stream.read(1) != b"\n"
        stream.write(b"\n" * is_truncated + json.dumps(finding.as_dict()).encode() + b"\n")


ALERT_LEVELS = {Severity.WARNING: "WARN", Severity.CRITICAL: "ERROR"}
"""What W&B calls the severities of which it sends alerts."""


def send_alert(loggers: Iterable[Any], finding: Finding) -> None:
    """An alert of the W&B run, which sends one a minute of a problem at most; none for what may be meant so."""
    level = ALERT_LEVELS.get(finding.severity)
    for logger in filter(_is_wandb, loggers) if level else ():
        logger.experiment.alert(title=str(finding.problem), text=str(finding), level=level)


def log_table(loggers: Iterable[Any], findings: list[Finding]) -> None:
    """All findings as the table ``findings`` of the W&B run; none where there are none."""
    rows = [
        [
            str(finding.severity), str(finding.problem), finding.where, finding.since_step, finding.step,
            ", ".join(f"{name} {value}" for name, value in finding.evidence.items()), finding.advice,
            ", ".join(finding.consequences),
        ]
        for finding in findings
    ]  # fmt: skip
    for logger in filter(_is_wandb, loggers) if rows else ():
        logger.log_table("findings", columns=COLUMNS, data=rows)


def _is_wandb(logger: Any) -> bool:
    return any(base_class.__name__ == "WandbLogger" for base_class in type(logger).__mro__)
