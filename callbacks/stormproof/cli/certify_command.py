"""Defines the subcommand ``certify``. Imports its implementation only when it runs."""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stormproof.errors import StormproofError
from stormproof.replay.faults.fault import FaultKind
from stormproof.standard_output import print_text

FAULT_NAMES = tuple(kind.value for kind in FaultKind)
"""Values of ``--faults``."""
SUMMARY = "test whether a training command resumes exactly after faults, and name what it does not restore"
DESCRIPTION = """\
Runs a training command in a copy of the working folder: twice without faults, then with faults. Restarts it after each
fault and compares each optimizer step with the uninterrupted run. The command needs no change.

  stormproof certify -- python train.py --resume auto
  stormproof certify --resume-command "python train.py --resume last.pt" -- python train.py
  stormproof certify --faults kill,term --junit junit.xml -- torchrun --nproc-per-node 2 train.py

Exit code: 0 if the command resumed exactly after each injected fault or refused a truncated checkpoint, 1 if not, 2 for
invalid usage or a command that cannot be certified.
"""
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


class InvalidOption(StormproofError):  # noqa: N818 (a message, not an exception of the program)
    """An option of ``certify`` is invalid."""

    exit_code = 2


def add_certify_parser(commands: Any) -> None:
    """Adds the subcommand to the subparsers of the command line."""
    parser = commands.add_parser(
        "certify",
        help=SUMMARY,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="stormproof certify [options] -- COMMAND…",
    )
    add = parser.add_argument
    add("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="the training command and its arguments, after --")
    add("--resume-command", metavar="TEXT", default="", help="command to start after a fault (default: COMMAND)")
    add("--output", metavar="DIR", type=Path, default=Path("certify"),
        help="folder for reports and copies; an earlier certification is replaced (default: certify)")  # fmt: skip
    add("--link", metavar="PATH", type=Path, action="append", default=[],
        help="link to this path, which the command can change, instead of copying it; repeatable")  # fmt: skip
    add("--budget", metavar="TIME",
        help="maximum time for faults, such as 90s, 10m or 2h (default: 10m, or less so that the whole certification "
        "takes about 4 times as long as the command)")  # fmt: skip
    add("--max-faults", metavar="N", type=int, default=12, help="maximum number of faults (default: 12)")
    add(
        "--faults",
        metavar="LIST",
        default="",
        help=f"comma-separated kinds of faults (default: all): {', '.join(FAULT_NAMES)}",
    )
    add("--every", metavar="N", type=int, default=1, help="compare only every N-th step of each optimizer (default: 1)")
    add("--timeout", metavar="TIME",
        help="time without progress after which a command counts as hung (default: 5 times the longest pause of the "
        "uninterrupted run, at least 30s)")  # fmt: skip
    add("--grace", metavar="TIME", default="10s", help="time between SIGTERM and SIGKILL (default: 10s)")
    add(
        "--jobs",
        metavar="N",
        type=int,
        help="number of runs at the same time (default: 2 if the command uses about one core, else 1)",
    )
    add("--seed", metavar="N", type=int, default=0, help="random seed for the steps of the faults (default: 0)")
    add("--keep", action="store_true", help="keep the working folder of the first uninterrupted run")
    add("--json", metavar="FILE", type=Path, help="write a copy of the JSON report to FILE")
    add("--junit", metavar="FILE", type=Path, help="write a copy of the JUnit report to FILE")
    parser.set_defaults(run=run_certify)


def run_certify(options: argparse.Namespace) -> int:
    """Certifies a command and writes the reports.

    Returns:
        Exit code: 0 if the command resumed exactly after each injected fault, else 1.
    """
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise InvalidOption("The command is missing. Pass it after --, as in `stormproof certify -- python train.py`.")
    for name in ("max_faults", "every", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InvalidOption(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    for name in ("json", "junit"):
        path = getattr(options, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise InvalidOption(f"--{name} must be a file in an existing folder, got {path}.")
    try:
        resume_command = tuple(shlex.split(options.resume_command))
    except ValueError as error:
        raise InvalidOption(f"--resume-command cannot be split into words: {error}.") from None
    kinds = _parse_faults(options.faults)

    # not at the top: other commands and --help need none of it
    from stormproof.replay.certify import certify  # noqa: PLC0415
    from stormproof.replay.reports.write import write_reports  # noqa: PLC0415
    from stormproof.replay.settings import Options  # noqa: PLC0415

    with _exit_on_signals():
        certification = certify(
            Options(
                tuple(command),
                resume_command,
                output=options.output,
                links=tuple(options.link),
                budget=_parse_seconds("--budget", options.budget),
                max_faults=options.max_faults,
                kinds=tuple(FaultKind(name) for name in kinds),
                every=options.every,
                timeout=_parse_seconds("--timeout", options.timeout),
                grace_seconds=_parse_seconds("--grace", options.grace) or 0.0,
                jobs=options.jobs,
                seed=options.seed,
                keep=options.keep,
                report=_report_progress if sys.stderr.isatty() else lambda _: None,
            )
        )
    print_text(write_reports(certification, options.output, json_file=options.json, junit_file=options.junit))
    return 0 if certification.is_exact else 1


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP raise SystemExit, so that no process of the command survives."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, lambda received, _: sys.exit(128 + received)) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)


def _parse_faults(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip()) or FAULT_NAMES
    unknown = [name for name in names if name not in FAULT_NAMES]
    if unknown:
        raise InvalidOption(f"--faults must list kinds among {', '.join(FAULT_NAMES)}, got {unknown[0]}.")
    return names


def _parse_seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None:
        raise InvalidOption(f"{option} must be a time such as 90s, 10m or 2h, got {text}.")
    return float(match[1]) * SECONDS[match[2]]


def _report_progress(event: str) -> None:
    sys.stderr.write(f"certify: {event}\n")
    sys.stderr.flush()
