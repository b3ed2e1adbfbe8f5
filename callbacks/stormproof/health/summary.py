"""Summary of a diagnosis for consoles and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from stormproof.finding import Finding, Severity


@dataclass(frozen=True)
class HealthSummary:
    """Findings of a run as a sentence and a list. Notebooks show a table with links.

    Attributes:
        findings: Findings, causes before symptoms.
        step: Number of optimizer steps that were diagnosed.

    Example:
        >>> print(HealthSummary([], step=400))
        No problem found in 400 steps.
    """

    findings: Sequence[Finding]
    step: int

    @property
    def headline(self) -> str:
        """Number of findings by severity, as a sentence."""
        steps = f"{self.step:,} step{'s' if self.step != 1 else ''}"
        if not self.findings:
            return f"No problem found in {steps}." if self.step else "Nothing was diagnosed yet."
        counts = {
            severity: sum(finding.severity == severity for finding in self.findings)
            for severity in (Severity.CRITICAL, Severity.WARNING, Severity.INFO)
        }
        parts = ", ".join(f"{count} {severity}" for severity, count in counts.items() if count)
        return f"{parts} finding{'s' if len(self.findings) != 1 else ''}" + (f" in {steps}." if self.step else ".")

    def __str__(self) -> str:
        return "\n".join([self.headline, *map(str, self.findings)])

    def _repr_html_(self) -> str:
        """Returns a table for notebooks."""
        if not self.findings:
            return f"<p>{escape(self.headline)}</p>"
        head = "".join(f"<th>{name}</th>" for name in ("severity", "finding", "place", "evidence", "cause and advice"))
        rows = "".join(f"<tr>{''.join(_html_cells(finding))}</tr>" for finding in self.findings)
        return f"<p>{escape(self.headline)}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _html_cells(finding: Finding) -> list[str]:
    """Returns the cells of a row."""
    code = escape(finding.code)
    if finding.url.startswith(("https://", "http://")):
        code = f'<a href="{escape(finding.url)}" target="_blank" rel="noopener">{code}</a>'
    cause = f"Likely cause: {finding.likely_cause}. " if finding.likely_cause else ""
    consequences = f" Explains: {', '.join(finding.consequences)}." if finding.consequences else ""
    description = finding.description[:1].upper() + finding.description[1:]
    texts = [escape(finding.where), escape(description), escape(f"{cause}{finding.advice}{consequences}")]
    return [f'<td style="text-align: left">{content}</td>' for content in (f"<b>{finding.severity}</b>", code, *texts)]
