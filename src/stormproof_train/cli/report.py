"""The command ``report``: reads run folders, writes a page or its numbers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from stormproof_train.console import say
from stormproof_train.errors import ExitCode, UserError
from stormproof_train.report.comparison import of_runs
from stormproof_train.report.kit.json_numbers import plain
from stormproof_train.report.kit.page import html
from stormproof_train.report.numbers import of_run
from stormproof_train.report.one_run import one_run_page
from stormproof_train.report.run_files import read_run
from stormproof_train.report.several_runs import several_runs_page
from stormproof_train.report.write import FILE, write

FILE_OF_SEVERAL = "runs.html"


def run(words: Sequence[str]) -> int:
    """Runs the command.

    Args:
        words: those after ``report``.

    Returns:
        The exit code.

    Raises:
        UserError: if a word is wrong, a folder is no run's, or nothing can be written there.
    """
    asked = _parser().parse_args(list(words))
    runs = [read_run(folder) for folder in _of_runs(asked.folders)]
    try:
        numbers = of_run(runs[0]) if len(runs) == 1 else of_runs(runs)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        folders = ", ".join(str(run.path) for run in runs)
        raise UserError(f"a file of {folders} holds what no run has written ({error!r}): put a copy back") from error
    if asked.json:
        write(json.dumps(plain(numbers), indent=1, allow_nan=False) + "\n", asked.output)
        return ExitCode.FINISHED
    output = asked.output or (runs[0].path / FILE if len(runs) == 1 else Path(FILE_OF_SEVERAL))
    write(html(one_run_page(numbers) if len(runs) == 1 else several_runs_page(numbers)), output)
    say(f"report: {output}")
    return ExitCode.FINISHED


def print_help(_: Sequence[str]) -> None:
    """Prints the help of the command ``report``."""
    _parser().print_help()


def _of_runs(folders: Sequence[Path]) -> list[Path]:
    """Each once; of several, as of ``runs/*``, without the folder of sweeps."""
    each = list({folder.resolve(): folder for folder in folders}.values())
    for folder in each:
        if (folder / "search.json").exists():
            raise UserError(f"{folder} is a search: its page is {folder / FILE}, its trials {folder / 'trials'}/*")
    return [folder for folder in each if folder.name != "sweeps" or (folder / "run.json").exists()] or each


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"report: {message}; {' '.join(self.format_usage().split())}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="stormproof-train report",
        description="Writes one HTML page on a run, or on several beside each other; to look at it takes no network.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="runs/NAME", help="a run's folder, finished or not")
    parser.add_argument("--json", action="store_true", help="prints the numbers of the page instead")
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help=f"where it goes; by default {FILE} in the run's folder, or {FILE_OF_SEVERAL} here where there are several",
    )  # fmt: skip
    return parser
