"""Applies rules, and groups their findings by root cause."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches

from stormproof.finding import Finding, Severity
from stormproof.health.record import Record
from stormproof.health.rule import Rule


class RuleSet:
    """Rules of a diagnosis, causes before symptoms.

    The order follows from :attr:`Rule.explains`: a problem comes before all problems that it explains, directly or
    through others. Of unrelated problems, the one that explains more comes first.

    Args:
        rules: Rules, one per problem.
        disable: Problems whose rules are left out, in upper or lower case.
        severity: Severity of all findings of a problem, instead of that of its rule.

    Raises:
        ValueError: If two rules report the same problem, problems explain each other, or a name is unknown.
    """

    def __init__(
        self, rules: Iterable[Rule], *, disable: Collection[str] = (), severity: Mapping[str, str] | None = None
    ) -> None:
        by_problem: dict[str, Rule] = {}
        for rule in rules:
            if rule.problem in by_problem:
                raise ValueError(f"`rules` must have one rule per problem, got two for {rule.problem.upper()}.")
            by_problem[rule.problem] = rule
        disabled = {_find_problem(name, by_problem, "disable") for name in disable}
        self._severities = {
            _find_problem(name, by_problem, "severity"): _parse_severity(value)
            for name, value in (severity or {}).items()
        }
        self._rules = {problem: rule for problem, rule in by_problem.items() if problem not in disabled}
        reach = {problem: self._reachable_problems(problem) for problem in self._rules}
        for problem, reachable in reach.items():
            if problem in reachable:
                other = next(
                    (other for other in reach if other in reachable - {problem} and problem in reach[other]), None
                )
                raise ValueError(
                    f"The rule of {problem.upper()} must not explain itself."
                    if other is None
                    else f"The rules of {problem.upper()} and {other.upper()} must not explain each other."
                )
        ordered = sorted(self._rules, key=lambda problem: (-len(reach[problem]), problem))
        self._rules = {problem: self._rules[problem] for problem in ordered}

    def apply(self, record: Record) -> list[Finding]:
        """Returns the findings of all rules."""
        return [
            replace(
                finding,
                severity=self._severities.get(problem, finding.severity),
                documentation=rule.documentation,
            )
            for problem, rule in self._rules.items()
            for finding in rule.check(record)
        ]

    def find_obsolete_problems(self, record: Record) -> list[str]:
        """Returns the problems whose earlier findings no longer apply."""
        return [
            problem
            for problem, rule in self._rules.items()
            if rule.is_obsolete is not None and rule.is_obsolete(record)
        ]

    def find_root_causes(self, findings: Iterable[Finding]) -> list[Finding]:
        """Returns one finding per root cause, with the findings that it explains as its consequences.

        Causes come first. Findings of severity INFO, which may be intended, come last.
        """
        order = {problem: number for number, problem in enumerate(self._rules)}
        roots: list[Finding] = []
        for finding in sorted(
            findings,
            key=lambda finding: (finding.severity == Severity.INFO, order.get(finding.problem, len(order))),
        ):
            index = next((index for index, root in enumerate(roots) if self._explains(root, finding)), None)
            if index is None:
                roots.append(finding)
            else:
                consequences = (*roots[index].consequences, _finding_name(finding), *finding.consequences)
                roots[index] = replace(roots[index], consequences=tuple(dict.fromkeys(consequences)))
        return roots

    def _reachable_problems(self, problem: str) -> set[str]:
        """Returns the problems that a problem explains, directly or through others."""
        reachable: set[str] = set()
        pending = [problem]
        while pending:
            rule = self._rules.get(pending.pop())
            explained = set() if rule is None else rule.explains - reachable
            reachable |= explained
            pending += explained
        return reachable

    def _explains(self, cause: Finding, symptom: Finding) -> bool:
        """Returns whether one finding is a possible consequence of another."""
        if Severity.INFO in (cause.severity, symptom.severity):
            return False
        return cause.problem == symptom.problem or (
            cause.problem in self._rules and symptom.problem in self._rules[cause.problem].explains
        )


def _find_problem(name: str, problems: Collection[str], argument: str) -> str:
    """Returns the problem with a name in upper or lower case."""
    problem = str(name).lower()
    if problem not in problems:
        matches = get_close_matches(problem, problems, n=1)
        advice = f"Did you mean {matches[0].upper()}?" if matches else "See stormproof.Problem."
        raise ValueError(f"`{argument}` has the unknown problem {name!r}. {advice}")
    return problem


def _parse_severity(value: str) -> Severity:
    """Returns the severity with a name in upper or lower case."""
    try:
        return Severity(str(value).lower())
    except ValueError:
        raise ValueError(
            f"`severity` must be 'info', 'warning' or 'critical' for each problem, got {value!r}."
        ) from None


def _finding_name(finding: Finding) -> str:
    """Returns the name of a finding in the consequences of another."""
    return f"{finding.problem} in {finding.where}" if finding.where else str(finding.problem)
