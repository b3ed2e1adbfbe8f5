"""The report in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stormproof.replay.certification import NO_TIME, Certification, Result
from stormproof.replay.reports.component_names import describe_component, describe_components
from stormproof.replay.reports.fixes import LIGHTNING_LINES, fixes_for
from stormproof.replay.reports.sentences import describe_fault, details, headline, result_line

IGNORED_LIMIT = 6


def text_report(certification: Certification, report: Path) -> str:
    """Returns the verdict of the worst fault, its fixes, and one line per fault."""
    return "\n".join(_lines(certification, report)) + "\n"


def summary(certification: Certification) -> str:
    """Returns the number of exact faults as a sentence.

    Example:
        >>> from stormproof.replay.certification import Certification
        >>> summary(Certification(("train",), 9, 1, 1.0, 3.0, "torch", {}, ()))
        'The command resumed exactly after 0 of 0 faults.'
    """
    total = len(certification.results)
    refused = sum(result.is_safe for result in certification.results) - certification.exact_count
    safe = f" and refused a damaged checkpoint after {refused}" if refused else ""
    faults = "fault" if total == 1 else "faults"
    return f"The command resumed exactly after {certification.exact_count} of {total} {faults}{safe}."


def _lines(certification: Certification, report: Path) -> Iterator[str]:
    worst = certification.worst
    if worst is not None:
        yield headline(worst.verdict)
        yield f"  fault: {describe_fault(worst.fault, worst.step)}, resumed from step {worst.verdict.resumed_step}"
        for label, text in details(worst.verdict):
            yield f"  {label}: {text}"
        yield from _fix_lines(certification)
    for result in certification.results:
        yield _mark(result) + result_line(result)
    yield from _skipped_lines(certification)
    if certification.ignored:
        ignored = describe_components(certification.ignored, IGNORED_LIMIT)
        yield f"Ignored, because they differ between two runs without faults: {ignored}"
    yield f"{summary(certification)} Report: {report}"


def _mark(result: Result) -> str:
    if result.verdict.is_exact:
        return "ok    "
    return "safe  " if result.is_safe else "FAIL  "


def _skipped_lines(certification: Certification) -> Iterator[str]:
    """Yields one line per reason for which faults were not injected."""
    by_reason: dict[str, list[str]] = {}
    for skipped in certification.skipped:
        by_reason.setdefault(skipped.reason, []).append(describe_fault(skipped.fault, skipped.fault.step))
    for reason, faults in by_reason.items():
        advice = " (raise --budget)" if reason == NO_TIME else ""
        yield f"skip  {faults[0] if len(faults) == 1 else f'{len(faults)} faults'}: {reason}{advice}"


def _fix_lines(certification: Certification) -> Iterator[str]:
    worst = certification.worst
    if worst is None or not worst.verdict.component:
        return
    components = (worst.verdict.component, *worst.verdict.others)
    for name, fix in fixes_for(components[:3], certification.framework):
        target = "" if name == worst.verdict.component else f" for {describe_component(name).replace('`', '')}"
        yield f"  fix{target}: {fix.replace('`', '')}"
    if certification.framework == "lightning":
        for line in LIGHTNING_LINES:
            yield f"       {line}"
