"""Reads ``findings.jsonl`` and selects active findings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stormproof.finding import Finding, Severity
from stormproof_train.errors import UserError
from stormproof_train.mapping_file import warn_once


def read_findings(path: Path) -> list[Finding]:
    """Returns the findings in a ``findings.jsonl``.

    Only the last line of a finding counts. Findings are in the order of these lines. Without a file the list is empty.
    Damaged lines are skipped with a warning.

    Raises:
        UserError: If the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}). Restore it from a copy, or remove it.") from error
    findings_by_key: dict[tuple[str, bool], Finding] = {}
    for number, line in enumerate(lines, start=1):
        try:
            finding = Finding.from_dict(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if not isinstance(error, json.JSONDecodeError) or not line.startswith("{"):  # not truncated by a kill
                warn_once(f"{path}, line {number} is not a valid finding ({error!r}) and is ignored")
            continue
        key = finding.problem, finding.severity == Severity.INFO
        findings_by_key.pop(key, None)  # moves it to the end
        findings_by_key[key] = finding
    return list(findings_by_key.values())


def active_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Returns findings above severity INFO that are neither explained by another finding nor resolved.

    A finding is resolved by a later finding of the same problem with ``until_step`` in its evidence.
    """
    explained_problems = {consequence.partition(" ")[0] for finding in findings for consequence in finding.consequences}
    latest_findings = {finding.problem: finding for finding in findings}
    resolved_problems = {problem for problem, finding in latest_findings.items() if "until_step" in finding.evidence}
    return [
        finding
        for finding in findings
        if finding.severity != Severity.INFO and finding.problem not in {*explained_problems, *resolved_problems}
    ]
