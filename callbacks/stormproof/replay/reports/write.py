"""Writes all reports of a certification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape as escape_xml
from xml.sax.saxutils import quoteattr

from stormproof.replay.certification import Certification, Result
from stormproof.replay.output_text import escape
from stormproof.replay.reports.fixes import fixes_for
from stormproof.replay.reports.html_report import html_report
from stormproof.replay.reports.sentences import describe_fault, details, headline
from stormproof.replay.reports.text_report import text_report


def write_reports(
    certification: Certification, folder: Path, *, json_file: Path | None = None, junit_file: Path | None = None
) -> str:
    """Writes ``report.html``, ``report.json``, ``junit.xml`` and ``badge.svg``.

    Returns:
        The text for the terminal.
    """
    documents = {
        folder / "report.html": html_report(certification),
        folder / "report.json": _json_report(certification),
        folder / "junit.xml": _junit_report(certification),
        folder / "badge.svg": _badge(certification),
    }
    if json_file is not None:
        documents[json_file] = documents[folder / "report.json"]
    if junit_file is not None:
        documents[junit_file] = documents[folder / "junit.xml"]
    for path, text in documents.items():
        path.write_text(text, encoding="utf-8")
    return text_report(certification, folder / "report.html")


_LABEL = "resume"
_CHARACTER_WIDTH = 6.6
"""Mean width of a character of the font at 11 pixels, in pixels."""
_GREEN, _RED = "#11703a", "#b3261e"


def _badge(certification: Certification) -> str:
    """Returns a badge with the number of exact faults."""
    exact, total = certification.exact_count, len(certification.results)
    value = (
        f"exact ({total})"
        if exact == total
        else f"passed ({total})"
        if certification.is_exact
        else f"{exact} of {total} exact"
    )
    left, right = (int(_CHARACTER_WIDTH * len(text)) + 12 for text in (_LABEL, value))
    color = _GREEN if certification.is_exact else _RED
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{_LABEL}: {value}"><title>{_LABEL}: {value}</title>'
        f'<rect width="{left + right}" height="20" rx="3" fill="#44546a"/>'
        f'<path fill="{color}" d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{right - 3}z"/>'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
        f'<text x="{left / 2}" y="14">{_LABEL}</text><text x="{left + right / 2}" y="14">{value}</text></g></svg>\n'
    )


_SUITE = "stormproof certify"


def _junit_report(certification: Certification) -> str:
    """Returns one test case per fault. A fault that was not injected is skipped."""
    failures = sum(not result.is_safe for result in certification.results)
    cases = [_case(result) for result in certification.results]
    cases += [
        f"  <testcase classname={quoteattr(_SUITE)} "
        f"name={quoteattr(describe_fault(skipped.fault, skipped.fault.step))}>"
        f"<skipped message={quoteattr(skipped.reason)}/></testcase>"
        for skipped in certification.skipped
    ]
    suite = (
        f"<testsuite name={quoteattr(_SUITE)} tests={quoteattr(str(len(cases)))} "
        f"failures={quoteattr(str(failures))} skipped={quoteattr(str(len(certification.skipped)))} "
        f'errors="0" time={quoteattr(f"{certification.seconds:.3f}")}>'
    )
    return "\n".join(['<?xml version="1.0" encoding="utf-8"?>', suite, *cases, "</testsuite>\n"])


def _case(result: Result) -> str:
    name, seconds = describe_fault(result.fault, result.step), f"{result.seconds:.3f}"
    start = f"  <testcase classname={quoteattr(_SUITE)} name={quoteattr(name)} time={quoteattr(seconds)}"
    if result.is_safe:
        return f"{start}/>"
    text = "\n".join(f"{label}: {escape(text)}" for label, text in details(result.verdict))
    message = quoteattr(headline(result.verdict))
    kind = quoteattr(result.verdict.kind.value)
    return f"{start}><failure message={message} type={kind}>{escape_xml(text)}</failure></testcase>"


_VERSION = 1
"""Version of the format."""


def _json_report(certification: Certification) -> str:
    """Returns the results as a JSON document."""
    document = {
        "version": _VERSION,
        "exact": certification.is_exact,
        "command": certification.command,
        "framework": certification.framework,
        "packages": certification.packages,
        "steps": certification.steps,
        "ranks": certification.ranks,
        "compared_every": certification.every,
        "run_seconds": round(certification.run_seconds, 3),
        "certification_seconds": round(certification.seconds, 3),
        "faults": [_describe(result, certification.framework) for result in certification.results],
        "skipped": [
            {"kind": skipped.fault.kind.value, "step": skipped.fault.step, "reason": skipped.reason}
            for skipped in certification.skipped
        ],
        "ignored": certification.ignored,
    }
    return json.dumps(document, indent=2) + "\n"


def _describe(result: Result, framework: str) -> dict[str, Any]:
    verdict = result.verdict
    components = (verdict.component, *verdict.others) if verdict.component else ()
    return {
        "kind": result.fault.kind.value,
        "fault": describe_fault(result.fault, result.step),
        "step": result.step,
        "verdict": verdict.kind.value,
        "safe": result.is_safe,
        "sentence": headline(verdict),
        "resumed_step": verdict.resumed_step,
        "compared_steps": verdict.compared_steps,
        "lost_steps": verdict.lost_steps,
        "loaded": verdict.loaded,
        "first_differing_step": verdict.step,
        "rank": verdict.rank,
        "component": verdict.component or None,
        "also_not_restored": verdict.others,
        "restored": verdict.restored,
        "differs_without_effect": verdict.without_effect,
        "fixes": [{"component": name, "fix": fix} for name, fix in fixes_for(components, framework)],
        "exit_code": verdict.exit_code,
        "message": verdict.message,
        "seconds": round(result.seconds, 3),
    }
