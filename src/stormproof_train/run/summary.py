"""Prints metrics, warnings and output paths of a finished run."""

from __future__ import annotations

import math
from pathlib import Path

from stormproof_train.console import print_line, print_table, result_table
from stormproof_train.pluralize import pluralize
from stormproof_train.run.findings_file import active_findings, read_findings
from stormproof_train.run.records import RunSummary


def print_summary(summary: RunSummary, folder: Path) -> None:
    """Prints metrics, warnings and output paths of a finished run."""
    test = summary["test"]
    print_table(str(summary["name"]), *result_table(summary))
    for conclusion in summary.get("conclusions", []):
        print_line(conclusion)
    parameters_text, steps_text = pluralize(summary["parameters"], "parameter"), pluralize(summary["steps"], "step")
    print_line(f"{parameters_text}, {steps_text}, {summary['seconds']:.1f} s")
    for split in ("validation", "test"):
        non_finite = [name for name, value in summary[split].items() if not math.isfinite(value)]
        if non_finite:
            print_line(
                f"warning: {split} {', '.join(non_finite)} not finite: the run diverged; try a lower optimizer.lr"
            )
    if not test:
        print_line(f"the test split was not read. To evaluate it: stormproof-train evaluate checkpoint={folder}")
    titles = list(dict.fromkeys(finding.title for finding in active_findings(read_findings(folder / "findings.jsonl"))))
    if titles:
        print_line(f"warning: TrainingHealth reported {', '.join(titles)}. See findings.jsonl in the run folder.")
    print_line(f"run folder: {folder}")
    if (folder / "report.html").exists():
        print_line(f"report: {folder / 'report.html'}")
