"""Applies all rules and groups their findings by root cause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from stormproof.finding import Finding, Severity
from stormproof.health.record import Record
from stormproof.health.rules import RULES

_RULES_BY_PROBLEM = {rule.problem: rule for rule in RULES}
_ORDER = {rule.problem: number for number, rule in enumerate(RULES)}


def apply_rules(record: Record) -> list[Finding]:
    """Returns the findings of all rules."""
    return [finding for rule in RULES for finding in rule.check(record)]


def find_root_causes(findings: Iterable[Finding]) -> list[Finding]:
    """Returns one finding per root cause, with the findings that it explains as its consequences.

    Causes come first. Findings of severity INFO, which may be intended, come last.
    """
    ordered = sorted(findings, key=lambda candidate: (candidate.severity == Severity.INFO, _ORDER[candidate.problem]))
    roots: list[Finding] = []
    for finding in ordered:
        root_index = next((index for index, candidate in enumerate(roots) if _explains(candidate, finding)), None)
        if root_index is None:
            roots.append(finding)
        else:
            consequences = dict.fromkeys(
                (*roots[root_index].consequences, _finding_name(finding), *finding.consequences)
            )
            roots[root_index] = replace(roots[root_index], consequences=tuple(consequences))
    return roots


def _explains(cause: Finding, symptom: Finding) -> bool:
    """Returns whether one finding is a possible consequence of another."""
    if Severity.INFO in (cause.severity, symptom.severity):
        return False
    cause_comes_first = _ORDER[cause.problem] < _ORDER[symptom.problem]
    return cause.problem == symptom.problem or (
        cause_comes_first and symptom.problem in _RULES_BY_PROBLEM[cause.problem].explains
    )


def _finding_name(finding: Finding) -> str:
    """Returns the name of a finding in the consequences of another."""
    return f"{finding.problem} in {finding.where}" if finding.where else str(finding.problem)
