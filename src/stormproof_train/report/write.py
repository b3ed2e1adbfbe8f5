"""Collects the numbers of runs and writes their reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from stormproof.checkpoint import atomic_write
from stormproof.finding import Finding, Problem
from stormproof_train.config.identity import SettingRecord, flatten
from stormproof_train.console import print_line
from stormproof_train.errors import UserError
from stormproof_train.report.attempts import summarize_attempts
from stormproof_train.report.evaluation_plots import add_plot_data
from stormproof_train.report.kit.json_numbers import to_json
from stormproof_train.report.kit.page import render_html
from stormproof_train.report.layers import compute_layer_cells
from stormproof_train.report.logged import Series
from stormproof_train.report.metric_curves import (
    LAYER_GROUPS,
    CurveSummary,
    buckets_per_curve,
    curve_names,
    summarize_curve,
)
from stormproof_train.report.one_run import run_page
from stormproof_train.report.output_files import REPORT_FILE, RUNS_REPORT_FILE
from stormproof_train.report.records import RunNumbers
from stormproof_train.report.run_comparison import compare_runs
from stormproof_train.report.run_files import RunFiles, read_run
from stormproof_train.report.several_runs import comparison_page
from stormproof_train.report.times import step_times
from stormproof_train.report.verdict import last_step, verdict
from stormproof_train.run.findings_file import active_findings

RUN_FILES = {"run.json", "summary.json", "evaluation.json", "lease.json", "result.json"}


def collect_run_numbers(run: RunFiles) -> RunNumbers:
    """Returns all content of a run's page as plain values."""
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


def write_report(folder: Path) -> None:
    """Writes ``report.html`` to the folder of a run. A failure only warns, because the run is finished."""
    try:
        write_output(render_html(run_page(collect_run_numbers(read_run(folder)))), folder / REPORT_FILE)
    except Exception as error:  # noqa: BLE001 (a finished run must not fail because of its report)
        print_line(
            f"warning: {folder / REPORT_FILE} could not be written: {error}; retry with stormproof-train report "
            f"{folder}"
        )


def write_output(text: str, output: Path | None) -> None:
    """Writes text to a file, or to standard output if no file is given.

    Raises:
        UserError: If ``output`` is a run file, exists without an ``.html`` or ``.json`` suffix, or cannot be written.
    """
    if output is None:
        sys.stdout.write(text)
        return
    if output.exists() and output.suffix not in {".html", ".json"} and output.is_file():
        raise UserError(f"{output} exists and is not an .html or .json file: give another --output")
    if output.name in RUN_FILES and (output.parent / "run.json").exists():
        raise UserError(f"{output} is a file of a run: give another --output")
    try:
        with atomic_write(output) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}): give another --output") from error


def write_runs_report(folders: Sequence[Path], output: Path | None, *, as_json: bool) -> None:
    """Writes the page of one run or several runs, or its numbers.

    Args:
        folders: Folders of the runs.
        output: Output file. None selects a file in the folder of the run, or in the working directory for several runs.
        as_json: If True, writes the numbers as JSON, by default to standard output.

    Raises:
        UserError: If a folder is not a run, or the output cannot be written.
    """
    runs = [read_run(folder) for folder in _select_run_folders(folders)]
    try:
        if len(runs) == 1:
            numbers = collect_run_numbers(runs[0])
            build_page, default_output = partial(run_page, numbers), runs[0].path / REPORT_FILE
        else:
            numbers = compare_runs(runs)
            build_page, default_output = partial(comparison_page, numbers), Path(RUNS_REPORT_FILE)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        paths = ", ".join(str(run.path) for run in runs)
        raise UserError(f"a file in {paths} has unexpected content ({error!r}). Restore a copy.") from error
    if as_json:
        write_output(json.dumps(to_json(numbers), indent=1, allow_nan=False) + "\n", output)
        return
    write_output(render_html(build_page()), output or default_output)
    print_line(f"report: {output or default_output}")


def _select_run_folders(folders: Sequence[Path]) -> list[Path]:
    """Returns each folder once. For several folders, as in ``runs/*``, excludes the folder of sweeps."""
    unique_folders = list({folder.resolve(): folder for folder in folders}.values())
    for folder in unique_folders:
        if (folder / "search.json").exists():
            raise UserError(
                f"{folder} is a search. Its page is {folder / REPORT_FILE}, and its trials are {folder / 'trials'}/*."
            )
    return [
        folder for folder in unique_folders if folder.name != "sweeps" or (folder / "config.yaml").exists()
    ] or unique_folders
