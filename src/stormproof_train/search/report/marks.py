"""Defines the style of a trial in all charts by its outcome."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from stormproof_train.report.kit.chart import Line
from stormproof_train.report.kit.marks import CROSS, STAR, MarkStyle
from stormproof_train.search.report.search_info import SearchInfo, TrialInfo

MARKS = {
    "pruned": MarkStyle("stopped early", "▼", "triangle-down", 6, 0.5, 34),
    "unfinished": MarkStyle("not finished", "■", "square", 2, 0.8, 34),
    "failed": MarkStyle("failed, or no finite value", "✕", CROSS, 3, 0.9, 30),
    "outside": MarkStyle("violates a constraint", "◆", "diamond", 4, 0.8, 46),
    "complete": MarkStyle("complete", "●", "circle", 0, 0.8, 42),
    "best": MarkStyle("best", "★", STAR, 1, 1, 110),
}  # fmt: skip
"""Styles by name, in drawing order. The last one is drawn on top."""
LAST_VALUE_NOTE = "Incomplete trials are drawn at their last value."


def mark_of(trial: TrialInfo, search: SearchInfo) -> str:
    """Returns the name of a trial's style."""
    if trial.number in search.best_trial_numbers:
        return "best"
    if trial.state == "failed" or (trial.is_complete and trial.values[0] is None):
        return "failed"
    if trial.state in {"running", "paused"}:
        return "unfinished"
    return trial.state if trial.is_feasible or trial.state == "pruned" else "outside"


def legend(marks: Collection[str], search: SearchInfo) -> list[Line]:
    """Returns the legend of the styles in a chart, the most prominent first."""
    best_label = "on the Pareto front" if len(search.objectives) > 1 else "best"
    return [
        replace(mark, label=best_label).line if name == "best" else mark.line
        for name, mark in reversed(MARKS.items())
        if name in marks
    ]
