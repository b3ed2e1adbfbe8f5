"""``findings.jsonl``: what was found to be wrong with a run, and what of it stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stormproof.finding import Finding, Severity
from stormproof_train.errors import UserError


def read_findings(path: Path) -> list[Finding]:
    """Those in a ``findings.jsonl``, each as it was told last, in the order in which they came; none without a file.

    Raises:
        UserError: if it is no such file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): put a copy back, or remove it") from error
    findings_by_key: dict[tuple[str, bool], Finding] = {}
    for number, line in enumerate(lines, start=1):
        try:
            finding = Finding.from_dict(json.loads(line))
        except json.JSONDecodeError:  # a kill cut it short
            continue
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number} is no finding of ours: {error!r}") from error
        key = finding.problem, finding.severity == Severity.INFO
        findings_by_key.pop(key, None)  # it takes its place behind the others again
        findings_by_key[key] = finding
    return list(findings_by_key.values())


def active_findings(findings: Sequence[Finding]) -> list[Finding]:
    """The mistakes among them, but for those that another explains, and those that were taken back.

    A finding is taken back by a later one of the same problem that says until which step it was so.
    """
    explained_problems = {consequence.partition(" ")[0] for finding in findings for consequence in finding.consequences}
    latest_findings = {finding.problem: finding for finding in findings}
    resolved_problems = {problem for problem, finding in latest_findings.items() if "until_step" in finding.evidence}
    return [
        finding
        for finding in findings
        if finding.severity != Severity.INFO and finding.problem not in {*explained_problems, *resolved_problems}
    ]
