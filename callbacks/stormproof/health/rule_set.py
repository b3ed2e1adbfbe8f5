"""Applies rules, and groups their findings by root cause."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from stormproof.arguments import check_arguments
from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule
from stormproof.internal_errors import describe_error, is_raised_by_signal_handler


@dataclass(frozen=True)
class Diagnosis:
    """Results of all rules.

    Attributes:
        findings: Findings with the severities of their rules.
        obsolete_problems: Problems whose earlier findings no longer apply.
        missing_evidence: What rules need to judge the run, by problem.
    """

    findings: list[Finding]
    obsolete_problems: list[str]
    missing_evidence: dict[str, NotEnoughEvidence]


class RuleSet:
    """Rules of a diagnosis, causes before symptoms.

    The order follows from :attr:`Rule.explains`: a problem comes before all problems that it explains, directly or
    through others. Of unrelated problems, the one that explains more comes first.

    Args:
        rules: Rules, one per problem.
        disable: Problems to ignore, in upper or lower case.
        severity: Severities by problem, which replace the severities of the rules.

    Attributes:
        problems: Problems of the rules.
        needs: Topics of the record that the rules read.
        failed_problems: Problems whose rules have raised an exception. Can be cleared.

    Raises:
        ValueError: If two rules report the same problem, problems explain each other, or a name is unknown.
        TypeError: If an argument has a wrong type.
    """

    @check_arguments()
    def __init__(
        self, rules: Iterable[Rule], *, disable: Collection[str] = (), severity: Mapping[str, str] | None = None
    ) -> None:
        by_problem = _index_rules(rules)
        known = {*by_problem, *map(str, Problem)}
        for rule in by_problem.values():
            for problem in rule.explains:
                _find_problem(problem, known, f"`explains` of the rule for {rule.problem.upper()}")
        self._disabled = {_find_problem(name, known, "`disable`") for name in disable}
        self._severities = {
            _find_problem(name, known, "`severity`"): _parse_severity(value) for name, value in (severity or {}).items()
        }
        self._rules = {problem: rule for problem, rule in by_problem.items() if problem not in self._disabled}
        reach = {problem: self._reachable_problems(problem) for problem in self._rules}
        for problem, reachable in reach.items():
            if problem in reachable:
                circle = [name.upper() for name in reach if name in reachable and problem in reach[name]]
                raise ValueError(f"Problems must not explain themselves or each other: {', '.join(circle)}.")
        ordered = sorted(self._rules, key=lambda problem: (-len(reach[problem]), problem))
        self._rules = {problem: self._rules[problem] for problem in ordered}
        self.problems = frozenset(self._rules)
        self.needs = frozenset(topic for rule in self._rules.values() for topic in rule.needs)
        self.failed_problems: list[str] = []

    def apply(self, record: Record) -> Diagnosis:
        """Applies all rules. If a rule raises an exception, it is left out from then on, with a warning."""
        findings: list[Finding] = []
        obsolete_problems: list[str] = []
        missing_evidence: dict[str, NotEnoughEvidence] = {}
        for problem, rule in self._rules.items():
            if problem in self.failed_problems:
                continue
            try:
                results, is_obsolete = _apply_rule(rule, record)
            except Exception as error:
                if is_raised_by_signal_handler(error):
                    raise
                self.failed_problems.append(problem)
                warnings.warn(
                    f"The rule for {problem.upper()} {describe_error(error)}. The diagnosis continues without it.",
                    stacklevel=2,
                )
                continue
            findings += [result for result in results if isinstance(result, Finding)]
            obsolete_problems += [problem] if is_obsolete else []
            missing = [result for result in results if isinstance(result, NotEnoughEvidence)]
            if missing:
                missing_evidence[problem] = max(
                    missing, key=lambda evidence: evidence.is_likely
                )  # the first likely one
        return Diagnosis(findings, obsolete_problems, missing_evidence)

    def find_root_causes(self, findings: Iterable[Finding]) -> list[Finding]:
        """Returns one finding per root cause, with the findings that it explains as its consequences.

        Leaves out disabled problems and INFO findings that repeat an active one, and sets the severities that were
        given, except in resolved findings. Causes come first. Findings of severity INFO, which may be intended, come
        last.
        """
        findings = list(findings)
        active = {(entry.problem, entry.where) for entry in findings if entry.severity != Severity.INFO}
        findings = [
            entry
            for entry in findings
            if entry.severity != Severity.INFO
            or "until_step" in entry.evidence
            or (entry.problem, entry.where) not in active
        ]
        order = {problem: number for number, problem in enumerate(self._rules)}
        roots: list[Finding] = []
        above_info_first = sorted(findings, key=lambda finding: finding.severity == Severity.INFO)
        for finding in sorted(
            (self._set_severity(finding) for finding in above_info_first if finding.problem not in self._disabled),
            key=lambda finding: (finding.severity == Severity.INFO, order.get(finding.problem, len(order))),
        ):
            index = next((index for index, root in enumerate(roots) if self._explains(root, finding)), None)
            if index is None:
                roots.append(finding)
            else:
                consequences = dict.fromkeys(
                    (*roots[index].consequences, _finding_name(finding), *finding.consequences)
                )
                consequences.pop(_finding_name(roots[index]), None)
                roots[index] = replace(roots[index], consequences=tuple(consequences))
        return roots

    def _set_severity(self, finding: Finding) -> Finding:
        is_resolved = "until_step" in finding.evidence
        severity = finding.severity if is_resolved else self._severities.get(finding.problem, finding.severity)
        return replace(finding, severity=severity)

    def _reachable_problems(self, problem: str) -> set[str]:
        """Returns the problems that a problem explains, directly or through others."""
        reachable: set[str] = set()
        pending = [problem]
        while pending:
            rule = self._rules.get(pending.pop())
            explained = set() if rule is None else set(rule.explains) - reachable
            reachable |= explained
            pending += explained
        return reachable

    def _explains(self, cause: Finding, symptom: Finding) -> bool:
        """Returns whether one finding is a possible consequence of another."""
        if Severity.INFO in (cause.severity, symptom.severity):
            return False
        rule = self._rules.get(cause.problem)
        if rule is None or cause.problem == symptom.problem:
            return cause.problem == symptom.problem
        is_weak = cause.severity != Severity.CRITICAL and symptom.problem in rule.explains_if_critical
        return symptom.problem in rule.explains and not is_weak


def _apply_rule(rule: Rule, record: Record) -> tuple[list[Finding | NotEnoughEvidence], bool]:
    """Returns the results of a rule that apply, and whether its earlier findings no longer apply."""
    results = rule.check(record)
    if not isinstance(results, Iterable):  # a function of the user
        kind = "None" if results is None else f"a {type(results).__name__}"
        raise TypeError(f"its function returned {kind} instead of findings")
    is_obsolete = rule.is_obsolete is not None and rule.is_obsolete(record)
    applicable_results: list[Finding | NotEnoughEvidence] = []
    for result in results:
        if isinstance(result, NotEnoughEvidence):
            applicable_results.append(result)
            continue
        if not isinstance(result, Finding):
            raise TypeError(f"its function yielded {result!r} instead of a Finding or NotEnoughEvidence")
        if result.problem != rule.problem:
            raise ValueError(f"its finding is about {result.code}")
        if result.severity == Severity.INFO or not is_obsolete:
            documentation = rule.documentation or result.documentation
            applicable_results.append(replace(result, step=result.step or record.step, documentation=documentation))
    return applicable_results, is_obsolete


def _index_rules(rules: Iterable[Rule]) -> dict[str, Rule]:
    """Returns the rules by problem."""
    by_problem: dict[str, Rule] = {}
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"`rules` must contain objects of the class stormproof.Rule, got {rule!r}.")
        if rule.problem in by_problem:
            raise ValueError(
                f"`rules` contains two rules for {rule.problem.upper()}. Remove one, or use it in place of the "
                "default rule."
            )
        by_problem[rule.problem] = rule
    return by_problem


def _find_problem(name: str, problems: Collection[str], argument: str) -> str:
    """Returns the problem with a name in upper or lower case."""
    problem = str(name).lower()
    if problem not in problems:
        matches = get_close_matches(problem, problems, n=1)
        advice = f"Did you mean {matches[0].upper()}?" if matches else "stormproof.Problem lists the built-in problems."
        raise ValueError(f"{argument} contains the unknown problem {name!r}. {advice}")
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
