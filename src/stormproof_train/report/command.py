"""The command ``report``: reads run folders, writes a page or its numbers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from stormproof.checkpoint import atomic_write
from stormproof_train.console import say
from stormproof_train.errors import ExitCode, UserError
from stormproof_train.report.comparison import of_runs
from stormproof_train.report.numbers import of_run
from stormproof_train.report.one_run import one_run_page
from stormproof_train.report.page import html
from stormproof_train.report.plain import plain
from stormproof_train.report.run_files import read_run
from stormproof_train.report.several_runs import several_runs_page

OF_A_RUN = {"run.json", "summary.json", "evaluation.json", "lease.json", "result.json"}
FILE, FILE_OF_SEVERAL = "report.html", "runs.html"


def report(words: Sequence[str]) -> int:
    """Runs the command.

    Args:
        words: those after ``report``.

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
        _tell(json.dumps(plain(numbers), indent=1, allow_nan=False) + "\n", asked.output)
        return ExitCode.FINISHED
    output = asked.output or (runs[0].path / FILE if len(runs) == 1 else Path(FILE_OF_SEVERAL))
    _tell(html(one_run_page(numbers) if len(runs) == 1 else several_runs_page(numbers)), output)
    say(f"report: {output}")
    return ExitCode.FINISHED


def _of_runs(folders: Sequence[Path]) -> list[Path]:
    """Each once; of several, as of ``runs/*``, without the folder of sweeps."""
    each = list({folder.resolve(): folder for folder in folders}.values())
    for folder in each:
        if (folder / "search.json").exists():
            raise UserError(f"{folder} is a search: its page is {folder / FILE}, its trials {folder / 'trials'}/*")
    return [folder for folder in each if folder.name != "sweeps" or (folder / "run.json").exists()] or each


def report_at_the_end(folder: Path) -> None:
    """Writes the page of a run that has just finished beside its files; a run that has ended costs nothing any more.

    Args:
        folder: of the run.
    """
    try:
        _tell(html(one_run_page(of_run(read_run(folder)))), folder / FILE)
    except Exception as error:  # noqa: BLE001 (whatever it is, it must not cost a training that has ended)
        say(f"warning: {folder / FILE} could not be written: {error}; stormproof-train report {folder} tries again")


def _tell(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    if output.exists() and output.suffix not in {".html", ".json"} and output.is_file():
        raise UserError(f"{output} is there, and no page of ours: give another --output")
    if output.name in OF_A_RUN and (output.parent / "run.json").exists():
        raise UserError(f"{output} is a file of a run: give another --output")
    try:
        with atomic_write(output) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}): give another --output") from error


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
