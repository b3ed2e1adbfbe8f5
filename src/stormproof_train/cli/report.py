"""Subcommand ``report``: reads run folders and writes an HTML page, or its numbers as JSON.

Example:
    >>> print_help([])  # doctest: +ELLIPSIS
    usage: stormproof-train report ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from stormproof_train.console import print_line
from stormproof_train.errors import ExitCode, UserError
from stormproof_train.report.kit.json_numbers import to_json
from stormproof_train.report.kit.page import render_html
from stormproof_train.report.numbers import collect_run_numbers
from stormproof_train.report.one_run import run_page
from stormproof_train.report.run_comparison import compare_runs
from stormproof_train.report.run_files import read_run
from stormproof_train.report.several_runs import comparison_page
from stormproof_train.report.write import REPORT_FILE, write_output

RUNS_REPORT_FILE = "runs.html"


def run(argv: Sequence[str]) -> int:
    """Writes the report of one run or several runs.

    Args:
        argv: Arguments after ``report``.

    Returns:
        Exit code.

    Raises:
        UserError: If an argument is invalid, a folder is not a run, or the output cannot be written.
    """
    options = _parser().parse_args(list(argv))
    runs = [read_run(folder) for folder in _select_run_folders(options.folders)]
    try:
        if len(runs) == 1:
            numbers = collect_run_numbers(runs[0])
            build_page, default_output = partial(run_page, numbers), runs[0].path / REPORT_FILE
        else:
            numbers = compare_runs(runs)
            build_page, default_output = partial(comparison_page, numbers), Path(RUNS_REPORT_FILE)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        folders = ", ".join(str(run.path) for run in runs)
        raise UserError(f"a file in {folders} has unexpected content ({error!r}). Restore a copy.") from error
    if options.json:
        write_output(json.dumps(to_json(numbers), indent=1, allow_nan=False) + "\n", options.output)
        return ExitCode.FINISHED
    output = options.output or default_output
    write_output(render_html(build_page()), output)
    print_line(f"report: {output}")
    return ExitCode.FINISHED


def print_help(_: Sequence[str]) -> None:
    """Prints the help of the subcommand ``report``."""
    _parser().print_help()


def _select_run_folders(folders: Sequence[Path]) -> list[Path]:
    """Returns each folder once. For several folders, as in ``runs/*``, excludes the folder of sweeps."""
    unique_folders = list({folder.resolve(): folder for folder in folders}.values())
    for folder in unique_folders:
        if (folder / "search.json").exists():
            raise UserError(
                f"{folder} is a search. Its page is {folder / REPORT_FILE}, and its trials are {folder / 'trials'}/*."
            )
    return [
        folder for folder in unique_folders if folder.name != "sweeps" or (folder / "run.json").exists()
    ] or unique_folders


class _ArgumentParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"report: {message}. {' '.join(self.format_usage().split())}")


def _parser() -> argparse.ArgumentParser:
    parser = _ArgumentParser(
        prog="stormproof-train report",
        description="Writes one HTML page about one run or several runs. Viewing the page needs no network.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="runs/NAME", help="folder of a run, finished or not")
    parser.add_argument("--json", action="store_true", help="print the numbers of the page instead")
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help=f"output file; by default {REPORT_FILE} in the run's folder, or {RUNS_REPORT_FILE} in the working "
        "directory for several runs",
    )  # fmt: skip
    return parser
