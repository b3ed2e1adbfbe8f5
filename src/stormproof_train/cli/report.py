"""Subcommand ``report``: reads run folders and writes an HTML page, or its numbers as JSON.

Example:
    >>> print_help([])  # doctest: +ELLIPSIS
    usage: stormproof-train report ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from stormproof_train.cli.collection_pause import paused_collection
from stormproof_train.errors import ExitCode, UserError, rank_by_similarity
from stormproof_train.lightning_output import suppress_lightning_output
from stormproof_train.report.output_files import REPORT_FILE, RUNS_REPORT_FILE

_OPTIONS = ("--json", "--output", "--help")


def run(argv: Sequence[str]) -> int:
    """Writes the report of one run or several runs.

    Args:
        argv: Arguments after ``report``.

    Returns:
        Exit code.

    Raises:
        UserError: If an argument is invalid, a folder is not a run, or the output cannot be written.
    """
    for arg in argv:
        option = arg.partition("=")[0]
        if option.startswith("--") and not any(known.startswith(option) for known in _OPTIONS):
            raise UserError(f"report: unknown option {option}. Did you mean {rank_by_similarity(option, _OPTIONS)[0]}?")
    options = _parser().parse_args(list(argv))
    with paused_collection():
        from stormproof_train.report.write import write_runs_report  # noqa: PLC0415 (imports torch)

    suppress_lightning_output()
    write_runs_report(options.folders, options.output, as_json=options.json)
    return ExitCode.FINISHED


def print_help(_: Sequence[str]) -> None:
    """Prints the help of the subcommand ``report``."""
    _parser().print_help()


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
