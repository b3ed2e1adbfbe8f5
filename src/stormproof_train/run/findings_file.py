"""Reads ``findings.jsonl``: the problems found in a run, and which of them are active."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stormproof.finding import Finding, Severity
from stormproof_train.errors import UserError


def read_findings(path: Path) -> list[Finding]:
    """Returns the last version of each finding in a ``findings.jsonl``, in order. Empty without a file.

    Raises:
        UserError: If the file cannot be read or has unexpected content.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}). Restore a copy, or remove it.") from error
    findings_by_key: dict[tuple[str, bool], Finding] = {}
    for number, line in enumerate(lines, start=1):
        try:
            finding = Finding.from_dict(json.loads(line))
        except json.JSONDecodeError:  # truncated by a kill
            continue
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number} is not a finding of this application: {error!r}") from error
        key = finding.problem, finding.severity == Severity.INFO
        findings_by_key.pop(key, None)  # moves the finding to the end
        findings_by_key[key] = finding
    return list(findings_by_key.values())


def active_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Returns the problems among the findings, without those that another finding explains and those that are resolved.

    A finding is resolved by a later finding of the same problem that contains its last step.
    """
    explained_problems = {consequence.partition(" ")[0] for finding in findings for consequence in finding.consequences}
    latest_findings = {finding.problem: finding for finding in findings}
    resolved_problems = {problem for problem, finding in latest_findings.items() if "until_step" in finding.evidence}
    return [
        finding
        for finding in findings
        if finding.severity != Severity.INFO and finding.problem not in {*explained_problems, *resolved_problems}
    ]
