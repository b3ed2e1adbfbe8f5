"""Writes the report of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from stormproof.checkpoint import atomic_write
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

RUN_FILES = {"run.json", "summary.json", "evaluation.json", "lease.json", "result.json"}


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

    Args:
        text: Text to write.
        output: Path of the file. None writes to standard output.

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
