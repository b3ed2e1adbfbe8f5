"""How a trial looks in all drawings, by what became of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from stormproof_train.report.kit.chart import Line
from stormproof_train.report.kit.marks import CROSS, STAR, Look
from stormproof_train.search.report.trials import Search, Trial

LOOKS = {
    "pruned": Look("stopped early", "▼", "triangle-down", 6, 0.5, 34),
    "unfinished": Look("not finished", "■", "square", 2, 0.8, 34),
    "failed": Look("failed, or no finite value", "✕", CROSS, 3, 0.9, 30),
    "outside": Look("breaks a constraint", "◆", "diamond", 4, 0.8, 46),
    "complete": Look("complete", "●", "circle", 0, 0.8, 42),
    "best": Look("the best", "★", STAR, 1, 1, 110),
}  # fmt: skip
"""By name, in the order in which they are drawn: what stands out last."""
LAST_VALUE = "A trial that did not come to its end is drawn at the last value that it had."


def look_of(trial: Trial, search: Search) -> str:
    """The name of its look."""
    if trial.number in search.chosen:
        return "best"
    if trial.state == "failed" or (trial.is_complete and trial.values[0] is None):
        return "failed"
    if trial.state in {"running", "paused"}:
        return "unfinished"
    return trial.state if trial.feasible or trial.state == "pruned" else "outside"


def legend(looks: Collection[str], search: Search) -> list[Line]:
    """Those looks that are there, what stands out first."""
    best = "on the Pareto front" if len(search.objectives) > 1 else "the best"
    return [
        replace(look, label=best).line if name == "best" else look.line
        for name, look in reversed(LOOKS.items())
        if name in looks
    ]
