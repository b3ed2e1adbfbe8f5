"""The numbers of one run that its page shows, and ``--json`` prints."""

from __future__ import annotations

from typing import Any

from stormproof_train.config.identity import flat
from stormproof_train.report.attempts import of_attempts
from stormproof_train.report.curves import LAYERS, are_curves, buckets_for, curve
from stormproof_train.report.defaults import changed
from stormproof_train.report.evaluation import with_drawings
from stormproof_train.report.layers import of_layers
from stormproof_train.report.run_files import RunFiles
from stormproof_train.report.times import of_steps
from stormproof_train.report.verdict import last_step, verdict
from stormproof_train.run.findings_file import standing


def of_run(run: RunFiles) -> dict[str, Any]:
    """All that a page says of a run, as plain values.

    Args:
        run: finished or not.

    Returns:
        ``name``, ``folder``, ``status``, ``last_step``, ``verdict``; ``summary``, its ``summary.json`` or None;
        ``curves``, by name; ``findings``, each with whether it ``stands``; ``layers``, by group of names; ``time`` or
        None; ``attempts``; ``evaluation`` or None; ``settings``, by dotted key; ``changed``, those that differ from the
        default.
    """
    names = are_curves(run.logged)
    stands = standing(run.findings)
    batches = {each["number"]: each.get("accumulated") or 1 for each in run.record["attempts"]}
    groups = {group: of_layers(run.logged, group) for group in LAYERS}
    return {
        "name": run.name,
        "folder": str(run.path),
        "status": "gone" if run.is_gone else run.record["status"],
        "last_step": last_step(run),
        "verdict": verdict(run),
        "summary": run.summary,
        "curves": {name: curve(run.logged[name], buckets_for(len(names))) for name in names},
        "findings": [{**each.as_dict(), "stands": each in stands} for each in run.findings],
        "layers": {group: found for group, found in groups.items() if found is not None},
        "time": of_steps(run.logged, batches),
        "attempts": of_attempts(run.record, run.logged),
        "evaluation": None if run.evaluation is None else with_drawings(run.evaluation, run.predictions),
        "settings": dict(flat(run.settings)),
        "changed": changed(run.settings) if run.settings else [],
    }
