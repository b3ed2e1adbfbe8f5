"""Collects the numbers of one run that its page shows and ``--json`` prints."""

from __future__ import annotations

from stormproof_train.config.identity import SettingRecord, flatten
from stormproof_train.report.attempts import summarize_attempts
from stormproof_train.report.evaluation_plots import add_plot_data
from stormproof_train.report.evidence_curves import evidence_curves
from stormproof_train.report.layers import compute_layer_cells
from stormproof_train.report.metric_curves import LAYER_GROUPS, buckets_per_curve, curve_names, summarize_curve
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
            {**entry.as_dict(), "active": entry in active, "curves": evidence_curves(entry, run.logged)}
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
