"""Writes all reports of a certification."""

from __future__ import annotations

from pathlib import Path

from stormproof.replay.certification import Certification
from stormproof.replay.reports.badge import badge
from stormproof.replay.reports.html_report import html_report
from stormproof.replay.reports.json_report import json_report
from stormproof.replay.reports.junit_report import junit_report
from stormproof.replay.reports.text_report import text_report


def write_reports(
    certification: Certification, folder: Path, *, json_file: Path | None = None, junit_file: Path | None = None
) -> str:
    """Writes ``report.html``, ``report.json``, ``junit.xml`` and ``badge.svg``.

    Args:
        certification: The results.
        folder: Output folder.
        json_file: Additional file for the JSON document.
        junit_file: Additional file for the JUnit document.

    Returns:
        The text for the terminal.
    """
    documents = {
        folder / "report.html": html_report(certification),
        folder / "report.json": json_report(certification),
        folder / "junit.xml": junit_report(certification),
        folder / "badge.svg": badge(certification),
    }
    if json_file is not None:
        documents[json_file] = documents[folder / "report.json"]
    if junit_file is not None:
        documents[junit_file] = documents[folder / "junit.xml"]
    for path, text in documents.items():
        path.write_text(text, encoding="utf-8")
    return text_report(certification, folder / "report.html")
