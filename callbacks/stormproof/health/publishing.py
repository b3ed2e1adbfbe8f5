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

COLUMNS = ["severity", "problem", "where", "since_step", "step", "evidence", "likely_cause", "advice", "explains"]
"""Columns of the W&B table."""
LOG_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.ERROR,
}
"""Logging levels by severity."""
ALERT_LEVELS = {Severity.WARNING: "WARN", Severity.CRITICAL: "ERROR"}
"""W&B alert levels by severity. Other severities send no alert."""


def log_finding(finding: Finding) -> None:
    """Logs a finding with a link to its page, and attaches it to the log record as ``finding``."""
    log_event(__name__, _with_link(finding), LOG_LEVELS[finding.severity], finding=finding)


def append_finding(path: Path, finding: Finding) -> None:
    """Appends a finding as a JSON line. Starts a new line first if the last line is truncated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
        is_truncated = size > 0 and stream.read(1) != b"\n"
        stream.write(b"\n" * is_truncated + json.dumps(finding.as_dict(), allow_nan=False).encode() + b"\n")


def send_alert(loggers: Iterable[Any], finding: Finding) -> None:
    """Sends a W&B alert unless the severity is INFO. W&B limits alerts to one per minute and problem."""
    level = ALERT_LEVELS.get(finding.severity)
    for logger in filter(_is_wandb, loggers) if level else ():
        logger.experiment.alert(title=finding.code, text=_with_link(finding), level=level)


def log_table(loggers: Iterable[Any], findings: list[Finding]) -> None:
    """Logs all findings as the W&B table ``findings``. Does nothing without findings."""
    rows = [
        [
            str(finding.severity), str(finding.problem), finding.where, finding.since_step, finding.step,
            finding.text or ", ".join(f"{name} {value}" for name, value in finding.evidence.items()),
            finding.likely_cause,
            finding.advice, ", ".join(finding.consequences),
        ]
        for finding in findings
    ]  # fmt: skip
    for logger in filter(_is_wandb, loggers) if rows else ():
        logger.log_table("findings", columns=COLUMNS, data=rows)


def _with_link(finding: Finding) -> str:
    """Returns the finding as text, with a link to its page."""
    return f"{finding} See {finding.url}" if finding.url else str(finding)


def _is_wandb(logger: Any) -> bool:
    """Returns whether a logger is a ``WandbLogger`` of either Lightning package, or of a class derived from one."""
    return any(base_class.__name__ == "WandbLogger" for base_class in type(logger).__mro__)
