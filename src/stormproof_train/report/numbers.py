"""Collects the numbers of one run that its page shows and ``--json`` prints."""

from __future__ import annotations

from collections.abc import Mapping

from stormproof.finding import Finding, Problem
from stormproof_train.config.identity import SettingRecord, flatten
from stormproof_train.report.attempts import summarize_attempts
from stormproof_train.report.evaluation_plots import add_plot_data
from stormproof_train.report.layers import compute_layer_cells
from stormproof_train.report.logged import Series
from stormproof_train.report.metric_curves import (
    LAYER_GROUPS,
    CurveSummary,
    buckets_per_curve,
    curve_names,
    summarize_curve,
)
from stormproof_train.report.records import RunNumbers
from stormproof_train.report.run_files import RunFiles
from stormproof_train.report.times import step_times
from stormproof_train.report.verdict import last_step, verdict
from stormproof_train.run.findings_file import active_findings


def collect_run_numbers(run: RunFiles) -> RunNumbers:
    """Returns all content of a run's page as plain values.

    Args:
        run: Files of a run, finished or not.
    """
    names = curve_names(run.logged)
    active = active_findings(run.findings)
    batches_per_step = {entry["number"]: entry.get("accumulated") or 1 for entry in run.record["attempts"]}
    groups = {group: compute_layer_cells(run.logged, group) for group in LAYER_GROUPS}
    return {
        "name": run.name,
        "folder": str(run.path),
        "status": "gone" if run.is_gone else run.record["status"],
        "last_step": last_step(run),
        "verdict": verdict(run),
        "summary": run.summary,
        "curves": {name: summarize_curve(run.logged[name], buckets_per_curve(len(names))) for name in names},
        "findings": [
            {**entry.as_dict(), "active": entry in active, "curves": _evidence_curves(entry, run.logged)}
            for entry in run.findings
        ],
        "layers": {group: cells for group, cells in groups.items() if cells is not None},
        "time": step_times(run.logged, batches_per_step),
        "attempts": summarize_attempts(run.record, run.logged),
        "evaluation": None if run.evaluation is None else add_plot_data(run.evaluation, run.predictions),
        "settings": dict(flatten(run.settings)),
        "changed": _changed_settings(run),
    }


def _changed_settings(run: RunFiles) -> list[SettingRecord]:
    """Returns the changed settings that a finished run recorded. Otherwise, compares its config. This imports torch."""
    changed = run.record.get("changed")
    if changed is None and run.settings:
        from stormproof_train.config.changed_settings import find_changed_settings  # noqa: PLC0415 (imports torch)

        return find_changed_settings(run.settings)
    return changed or []


_BUCKETS = 40
"""Number of buckets of a curve, which is enough for a small chart."""
_LOSSES = ("train/loss", "val/loss")
_EVIDENCE_NAMES: dict[str, tuple[str, ...]] = {
    Problem.BATCH_NORM_STATISTICS_LAG: _LOSSES,
    Problem.DATA_STARVATION: ("time/data_wait_fraction",),
    Problem.DEAD_UNITS: ("units/dead_fraction/{where}", "units/silent_fraction/{where}"),
    Problem.EXPLODING_GRADIENTS: ("gradients/norm", "gradients/norm/{where}"),
    Problem.LEARNING_RATE_TOO_HIGH: ("updates/ratio",),
    Problem.LEARNING_RATE_TOO_LOW: ("updates/ratio",),
    Problem.LEARNING_RATE_ZERO: ("optimizer/lr",),
    Problem.LOSS_SPIKE: _LOSSES,
    Problem.NO_BETTER_THAN_CONSTANT: _LOSSES,
    Problem.OVERFITTING: _LOSSES,
    Problem.PLATEAU: _LOSSES,
    Problem.TARGETS_UNRELATED_TO_INPUTS: _LOSSES,
    Problem.VANISHING_GRADIENTS: ("gradients/norm", "gradients/norm/{where}"),
    Problem.WEIGHTS_UNCHANGED: ("updates/ratio",),
}
"""Names of the series by problem, with the place of the finding."""


def _evidence_curves(finding: Finding, logged: Mapping[str, Series]) -> dict[str, CurveSummary]:
    """Returns the curves that show the evidence of a finding, by logged name. Empty if none has two points."""
    names = [name.format(where=finding.where) for name in _EVIDENCE_NAMES.get(finding.problem, ())]
    return {name: summarize_curve(logged[name], _BUCKETS) for name in names if name in logged and len(logged[name]) > 1}
