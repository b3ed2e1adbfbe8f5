"""Prints metrics, warnings and output paths of a finished run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stormproof_train.console import print_table, result_table, say
from stormproof_train.counted import counted
from stormproof_train.run.findings_file import read_findings, standing


def print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Prints metrics, warnings and output paths of a finished run."""
    test = summary["test"]
    print_table(str(summary["name"]), *result_table(summary))
    for sentence in summary.get("conclusions", []):
        say(sentence)
    size, steps = counted(summary["parameters"], "parameter"), counted(summary["steps"], "step")
    say(f"{size}, {steps}, {summary['seconds']:.1f} s")
    for split in ("validation", "test"):
        broken = [name for name, value in summary[split].items() if not math.isfinite(value)]
        if broken:
            say(f"warning: {split} {', '.join(broken)} not finite: the run diverged; try a lower optimizer.lr")
    if not test:
        say(f"the run has left its test split unread: stormproof-train evaluate checkpoint={folder} reads it")
    found = list(dict.fromkeys(each.title for each in standing(read_findings(folder / "findings.jsonl"))))
    if found:
        say(f"warning: found in training: {', '.join(found)}; see findings.jsonl there")
    say(f"run folder: {folder}")
    if (folder / "report.html").exists():
        say(f"report: {folder / 'report.html'}")
