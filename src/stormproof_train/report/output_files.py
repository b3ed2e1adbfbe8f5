"""Default file names of reports."""

from __future__ import annotations

from pathlib import Path

REPORT_FILE = "report.html"
RUNS_REPORT_FILE = "runs.html"
"""Report of several runs."""


def is_report_current(folder: Path) -> bool:
    """Returns True if the report of a finished run is complete and not older than its summary."""
    report, summary = folder / REPORT_FILE, folder / "summary.json"
    return (
        report.is_file()
        and report.read_bytes().rstrip().endswith(b"</html>")
        and report.stat().st_mtime >= summary.stat().st_mtime
    )
