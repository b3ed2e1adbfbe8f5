"""The subcommand ``certify``: its options, and its work, for which other modules are imported late."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from stormproof.errors import StormproofError
from stormproof.standard_output import print_text

FAULT_NAMES = (
    "kill", "epoch-end", "validation", "mid-save", "before-rename", "term", "rank", "torn", "full-disk",
)  # fmt: skip
"""Values of ``--faults``."""
SUMMARY = "test whether a command that trains resumes exactly after faults, and name what it does not restore"
DESCRIPTION = """\
Runs a command that trains in a copy of the working folder, twice without faults and then with faults. Restarts it after
each fault and compares each optimizer step with the uninterrupted run. The command needs no change.

  stormproof certify -- python train.py --resume auto
  stormproof certify --resume-command "python train.py --resume last.pt" -- python train.py
  stormproof certify --faults kill,term --junit junit.xml -- torchrun --nproc-per-node 2 train.py

Exit code: 0 if all faults resumed exactly, 1 if not, 2 for invalid usage or a command that cannot be certified.
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
    add("--resume-command", metavar="TEXT", default="", help="command that resumes; by default the same command")
    add("--output", metavar="DIR", type=Path, default=Path("certify"),
        help="folder for reports and copies; new, or of an earlier certification (default: certify)")  # fmt: skip
    add("--link", metavar="PATH", type=Path, action="append", default=[],
        help="link to this file or folder instead of copying it, for large data; repeatable")  # fmt: skip
    add("--budget", metavar="TIME",
        help="maximum time for faults, such as 90s, 10m or 2h; by default 10m, and at most 4 times the duration of "
        "the command for everything")  # fmt: skip
    add("--kills", metavar="N", type=int, default=12, help="maximum number of faults (default: 12)")
    add("--faults", metavar="LIST", default="", help=f"kinds of faults, any of {','.join(FAULT_NAMES)}; by default all")
    add("--every", metavar="N", type=int, default=1, help="compare only every N-th step of each optimizer (default: 1)")
    add("--timeout", metavar="TIME",
        help="time without progress after which a command hangs; by default 5 times the longest time without progress "
        "of the uninterrupted run, at least 30s")  # fmt: skip
    add("--grace", metavar="TIME", default="10s", help="time between SIGTERM and SIGKILL (default: 10s)")
    add(
        "--workers",
        metavar="N",
        type=int,
        help="number of runs at the same time; by default 2 if the command uses one thread",
    )
    add("--seed", metavar="N", type=int, default=0, help="seed of the places of faults (default: 0)")
    add("--keep", action="store_true", help="keep the copies of the working folder")
    add("--json", metavar="FILE", type=Path, help="additional file for the report as JSON, which is also in DIR")
    add("--junit", metavar="FILE", type=Path, help="additional file for the report as JUnit XML, which is also in DIR")
    parser.set_defaults(run=run_certify)


def run_certify(options: argparse.Namespace) -> int:
    """Certifies a command and writes the reports.

    Returns:
        Exit code: 0 if all faults resumed exactly, else 1.
    """
    import shlex  # noqa: PLC0415

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise InvalidOption("The command is missing. Pass it after --, as in `stormproof certify -- python train.py`.")
    for name in ("kills", "every"):
        if getattr(options, name) < 1:
            raise InvalidOption(f"--{name} must be at least 1, got {getattr(options, name)}.")
    kinds = _parse_faults(options.faults)

    from stormproof.replay.certify import Options, certify  # noqa: PLC0415
    from stormproof.replay.faults.fault import FaultKind  # noqa: PLC0415
    from stormproof.replay.reports.write import write_reports  # noqa: PLC0415

    certification = certify(
        Options(
            tuple(command),
            tuple(shlex.split(options.resume_command)),
            output=options.output,
            links=tuple(options.link),
            budget=_parse_seconds("--budget", options.budget),
            kills=options.kills,
            kinds=tuple(FaultKind(name) for name in kinds),
            every=options.every,
            timeout=_parse_seconds("--timeout", options.timeout),
            grace_seconds=_parse_seconds("--grace", options.grace) or 0.0,
            workers=options.workers,
            seed=options.seed,
            keep=options.keep,
            report=_report_progress if sys.stderr.isatty() else lambda _: None,
        )
    )
    print_text(write_reports(certification, options.output, json_file=options.json, junit_file=options.junit))
    return 0 if certification.is_exact else 1


def _parse_faults(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip()) or FAULT_NAMES
    unknown = [name for name in names if name not in FAULT_NAMES]
    if unknown:
        raise InvalidOption(f"--faults {unknown[0]} does not exist. Choices: {', '.join(FAULT_NAMES)}.")
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
