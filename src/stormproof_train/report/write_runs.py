"""Writes the report of one run or several runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from stormproof_train.console import print_line
from stormproof_train.errors import UserError
from stormproof_train.report.kit.json_numbers import to_json
from stormproof_train.report.kit.page import render_html
from stormproof_train.report.numbers import collect_run_numbers
from stormproof_train.report.one_run import run_page
from stormproof_train.report.output_files import REPORT_FILE, RUNS_REPORT_FILE
from stormproof_train.report.run_comparison import compare_runs
from stormproof_train.report.run_files import read_run
from stormproof_train.report.several_runs import comparison_page
from stormproof_train.report.write import write_output


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
