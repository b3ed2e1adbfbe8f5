"""Writes the report of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from stormproof.checkpoint import atomic_write
from stormproof_train.console import print_line
from stormproof_train.errors import UserError
from stormproof_train.report.kit.page import render_html
from stormproof_train.report.numbers import collect_run_numbers
from stormproof_train.report.one_run import run_page
from stormproof_train.report.output_files import REPORT_FILE
from stormproof_train.report.run_files import read_run

RUN_FILES = {"run.json", "summary.json", "evaluation.json", "lease.json", "result.json"}


def write_report(folder: Path) -> None:
    """Writes ``report.html`` to the folder of a run. A failure only warns, because the run is finished.

    Args:
        folder: Folder of the run.
    """
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
