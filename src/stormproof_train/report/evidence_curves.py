"""Chooses logged series that show the evidence of a finding over the steps."""

from __future__ import annotations

from collections.abc import Mapping

from stormproof.finding import Finding, Problem
from stormproof_train.report.logged import Series
from stormproof_train.report.metric_curves import CurveSummary, summarize_curve

BUCKETS = 40
"""Number of buckets of a curve, which is enough for a small chart."""
LOSSES = ("train/loss", "val/loss")
EVIDENCE_NAMES: dict[str, tuple[str, ...]] = {
    Problem.BATCH_NORM_STATISTICS_LAG: LOSSES,
    Problem.DATA_STARVATION: ("time/data_wait_fraction",),
    Problem.DEAD_UNITS: ("units/dead_fraction/{where}", "units/silent_fraction/{where}"),
    Problem.EXPLODING_GRADIENTS: ("gradients/norm", "gradients/norm/{where}"),
    Problem.LEARNING_RATE_TOO_HIGH: ("updates/ratio",),
    Problem.LEARNING_RATE_TOO_LOW: ("updates/ratio",),
    Problem.LEARNING_RATE_ZERO: ("optimizer/lr",),
    Problem.LOSS_SPIKE: LOSSES,
    Problem.NO_BETTER_THAN_CONSTANT: LOSSES,
    Problem.OVERFITTING: LOSSES,
    Problem.PLATEAU: LOSSES,
    Problem.TARGETS_UNRELATED_TO_INPUTS: LOSSES,
    Problem.VANISHING_GRADIENTS: ("gradients/norm", "gradients/norm/{where}"),
    Problem.WEIGHTS_UNCHANGED: ("updates/ratio",),
}
"""Names of the series by problem, with the place of the finding."""


def evidence_curves(finding: Finding, logged: Mapping[str, Series]) -> dict[str, CurveSummary]:
    """Returns the curves that show the evidence of a finding, by logged name. Empty if none has two points."""
    names = [name.format(where=finding.where) for name in EVIDENCE_NAMES.get(finding.problem, ())]
    return {name: summarize_curve(logged[name], BUCKETS) for name in names if name in logged and len(logged[name]) > 1}
