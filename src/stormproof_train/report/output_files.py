"""Default file names of reports."""

from __future__ import annotations

REPORT_FILE = "report.html"
RUNS_REPORT_FILE = "runs.html"
"""Report of several runs."""
