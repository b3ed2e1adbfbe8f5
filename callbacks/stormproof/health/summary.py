"""Summary of a diagnosis for consoles and notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from stormproof.finding import Finding, Severity


@dataclass(frozen=True, repr=False)
class HealthSummary:
    """Findings of a run as text, or as a table in a notebook.

    Attributes:
        findings: Findings, causes before symptoms.
        steps: Number of optimizer steps that were diagnosed.
        has_failed: Whether an internal error ended the diagnosis.
        failed_problems: Problems whose rules raised an exception.
        missing_evidence: What rules need to judge the run, by problem.

    Example:
        >>> HealthSummary([], steps=400)
        No problems found in 400 steps.
    """

    findings: Sequence[Finding]
    steps: int
    has_failed: bool = False
    failed_problems: Sequence[str] = ()
    missing_evidence: Mapping[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """Number of findings by severity, in one or two sentences."""
        steps = f"{self.steps:,} step{'s' if self.steps != 1 else ''}"
        counts = [
            (sum(finding.severity == severity for finding in self.findings), severity)
            for severity in (Severity.CRITICAL, Severity.WARNING, Severity.INFO)
        ]
        parts = [f"{count} {severity}" for count, severity in counts if count]
        numbers = " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
        if parts:
            headline = f"{numbers} finding{'s' if len(self.findings) != 1 else ''} in {steps}."
        else:
            headline = f"No problems found in {steps}." if self.steps else "No steps have been diagnosed yet."
        if self.has_failed:
            headline += " An internal error ended the diagnosis there."
        if self.failed_problems:
            headline += f" Rules that failed: {', '.join(self.failed_problems).upper()}."
        return headline

    def __str__(self) -> str:
        missing = [f"{self._missing_title}:", *(f"  {text}" for text in self._missing_texts())]
        return "\n".join([self.headline, *map(str, self.findings), *(missing if self.missing_evidence else [])])

    __repr__ = __str__

    @property
    def _missing_title(self) -> str:
        return f"Not enough evidence for {len(self.missing_evidence)} of the problems"

    def _missing_texts(self) -> list[str]:
        problems: dict[str, list[str]] = {}
        for problem, missing in self.missing_evidence.items():
            problems.setdefault(missing, []).append(problem.upper())
        return [
            f"{', '.join(names)} need{'s' if len(names) == 1 else ''} {missing}" for missing, names in problems.items()
        ]

    def _repr_html_(self) -> str:
        """Returns a table for notebooks."""
        return self._findings_html() + self._missing_html()

    def _missing_html(self) -> str:
        """Returns a folded list of problems without enough evidence."""
        if not self.missing_evidence:
            return ""
        items = "".join(f"<li>{escape(text)}</li>" for text in self._missing_texts())
        return f"<details><summary>{self._missing_title}</summary><ul>{items}</ul></details>"

    def _findings_html(self) -> str:
        if not self.findings:
            return f"<p>{escape(self.headline)}</p>"
        head = "".join(f"<th>{name}</th>" for name in ("severity", "finding", "place", "evidence", "cause and advice"))
        rows = "".join(f"<tr>{''.join(_html_cells(finding))}</tr>" for finding in self.findings)
        return f"<p>{escape(self.headline)}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _html_cells(finding: Finding) -> list[str]:
    """Returns the cells of a row."""
    code = escape(finding.code)
    if finding.url:
        code = f'<a href="{escape(finding.url)}" target="_blank" rel="noopener">{code}</a>'
    cause = f"Likely cause: {finding.likely_cause}. " if finding.likely_cause else ""
    consequences = f" Explains: {', '.join(finding.consequences)}." if finding.consequences else ""
    description = finding.description[:1].upper() + finding.description[1:]
    texts = [escape(finding.where), escape(description), escape(f"{cause}{finding.advice}{consequences}")]
    return [f'<td style="text-align: left">{content}</td>' for content in (f"<b>{finding.severity}</b>", code, *texts)]
