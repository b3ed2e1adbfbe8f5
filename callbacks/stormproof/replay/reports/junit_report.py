"""The report as JUnit XML, which CI systems show as tests."""

from __future__ import annotations

from xml.sax.saxutils import escape as escape_xml
from xml.sax.saxutils import quoteattr

from stormproof.replay.certification import Certification, Result
from stormproof.replay.output_text import escape
from stormproof.replay.reports.sentences import describe_fault, details, headline

SUITE = "stormproof certify"


def junit_report(certification: Certification) -> str:
    """Returns one test case per fault. A fault that was not injected is skipped."""
    failures = sum(not result.is_safe for result in certification.results)
    cases = [_case(result) for result in certification.results]
    cases += [
        f"  <testcase classname={quoteattr(SUITE)} "
        f"name={quoteattr(describe_fault(skipped.fault, skipped.fault.step))}>"
        f"<skipped message={quoteattr(skipped.reason)}/></testcase>"
        for skipped in certification.skipped
    ]
    suite = (
        f"<testsuite name={quoteattr(SUITE)} tests={quoteattr(str(len(cases)))} "
        f"failures={quoteattr(str(failures))} skipped={quoteattr(str(len(certification.skipped)))} "
        f'errors="0" time={quoteattr(f"{certification.seconds:.3f}")}>'
    )
    return "\n".join(['<?xml version="1.0" encoding="utf-8"?>', suite, *cases, "</testsuite>\n"])


def _case(result: Result) -> str:
    name, seconds = describe_fault(result.fault, result.step), f"{result.seconds:.3f}"
    start = f"  <testcase classname={quoteattr(SUITE)} name={quoteattr(name)} time={quoteattr(seconds)}"
    if result.is_safe:
        return f"{start}/>"
    text = "\n".join(f"{label}: {escape(text)}" for label, text in details(result.verdict))
    message = quoteattr(headline(result.verdict))
    kind = quoteattr(result.verdict.kind.value)
    return f"{start}><failure message={message} type={kind}>{escape_xml(text)}</failure></testcase>"
