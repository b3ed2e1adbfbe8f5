"""The command ``stormproof``: manages checkpoints, checks for risks of data loss, and certifies commands."""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from stormproof.checkpoint import Resolution, Store
from stormproof.checkpoint.commit_log import CommitLog
from stormproof.checkpoint.file_names import LOG_FILE_NAME
from stormproof.checkpoint.manifest import Checkpoint
from stormproof.checkpoint.resolution import (
    BadCheckpoint,
    extract_names,
    find_without_manifest,
    is_foreign,
)
from stormproof.checkpoint.storage import ObjectStorage, is_url
from stormproof.cli.adopt_command import adopt_command
from stormproof.cli.certify_command import add_certify_parser
from stormproof.errors import StormproofError
from stormproof.standard_output import discard_unwritten_errors, print_error

EXIT_OK, EXIT_RISKS_FOUND, EXIT_USAGE_ERROR, EXIT_DAMAGED, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 0, 1, 2, 74, 130, 141


RETRY_SECONDS = 10.0
"""Maximum time to retry a request to an object store. Short, because a user is waiting."""


class UsageError(StormproofError):
    """The command line is invalid."""

    exit_code = EXIT_USAGE_ERROR


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. Run {self.prog} --help for usage.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Arguments after the command name. Defaults to ``sys.argv[1:]``.

    Returns:
        Exit code: 0 for success, 1 if ``doctor`` found risks or ``certify`` differences, 2 for invalid usage, 74 for a
        damaged checkpoint or a storage error, 130 after Ctrl-C, 141 for a broken pipe.
    """
    atexit.register(discard_unwritten_errors)
    try:
        options = _build_parser().parse_args(arguments)
        code = options.run(options)
        sys.stdout.flush()
        return code  # noqa: TRY300 (the flush may raise BrokenPipeError)
    except BrokenPipeError:  # `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except StormproofError as error:
        return _print_error(str(error), error.exit_code)
    except OSError as error:
        file_prefix = f"{error.filename}: " if error.filename else ""
        return _print_error(f"{file_prefix}{error.strerror or error}", EXIT_DAMAGED)
    except KeyboardInterrupt:
        return _print_error("stopped by Ctrl-C", EXIT_INTERRUPTED)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="stormproof", description="Manages folders of checkpoints, and tests resuming.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    folder_help = "a folder of checkpoints, a run folder that contains checkpoints/, or a URL such as s3://bucket/run"
    for name, handler, summary in (
        ("verify", _run_verify, "read every checkpoint and report damaged ones (exit code 74)"),
        ("list", _run_list, "list checkpoints without reading them"),
    ):
        command = commands.add_parser(name, help=summary, description=f"{name}: {summary}.")
        command.add_argument("folder", metavar="DIR", help=folder_help)
        command.set_defaults(run=handler)
    summary = "import a checkpoint of Lightning's ModelCheckpoint to resume from it; the file is unchanged"
    command = commands.add_parser("adopt", help=summary, description=f"adopt: {summary}.")
    command.add_argument("file", metavar="FILE", type=Path, help="a .ckpt file")
    command.add_argument("--into", metavar="DIR", help=f"{folder_help}; by default the folder of FILE")
    command.set_defaults(run=_run_adopt)
    summary = "check the installation and optionally a folder for risks of data loss (exit code 1)"
    command = commands.add_parser("doctor", help=summary, description=f"doctor: {summary}.")
    command.add_argument("folder", metavar="DIR", nargs="?", help=folder_help)
    command.set_defaults(run=_run_doctor)
    add_certify_parser(commands)
    return parser


def _run_verify(options: argparse.Namespace) -> int:
    store = _open_store(options.folder)
    resolution = store.resolve(verify_all=True)
    if resolution.chosen_checkpoint is None and store.read_checkpoints():
        resolution = store.resolve(verify_all=True)  # a running process may have deleted all that were listed
    good_checkpoints = [
        checkpoint
        for checkpoint in (resolution.chosen_checkpoint, *resolution.older_checkpoints)
        if checkpoint is not None
    ]
    verdicts = {checkpoint.name: "good" for checkpoint in good_checkpoints}
    verdicts |= {bad_checkpoint.name: f"bad: {bad_checkpoint.reason}" for bad_checkpoint in resolution.bad_checkpoints}
    verdicts |= dict.fromkeys(resolution.lost_names, "lost: it was committed, but its files are missing")
    if not verdicts and store.read_checkpoints():
        raise UsageError(
            f"the checkpoints in {store.location} change too quickly to be verified: verify it after the run"
        )
    if not verdicts and not resolution.log_problems:
        raise UsageError(
            ". ".join([f"{store.location} contains no checkpoint", *_describe_foreign(resolution.foreign_files, store)])
        )
    rows = [
        (name, verdicts[name]) for name in sorted(verdicts, key=lambda name: int(name.partition("-")[0]), reverse=True)
    ]
    rows += [(LOG_FILE_NAME, f"damaged: {problem}") for problem in resolution.log_problems]
    _print_lines(*_format_table(rows))
    _print_lines(_describe_resume(resolution), *_describe_foreign(resolution.foreign_files, store))
    return EXIT_DAMAGED if resolution.bad_checkpoints or resolution.lost_names or resolution.log_problems else EXIT_OK


def _describe_resume(resolution: Resolution) -> str:
    if resolution.chosen_checkpoint is None:
        return "there is no good checkpoint" + (
            ": the next start is refused" if resolution.bad_checkpoints or resolution.lost_names else ""
        )
    return f"the next start resumes from {resolution.chosen_checkpoint.name}"


def _run_list(options: argparse.Namespace) -> int:
    store = _open_store(options.folder)
    listing = list_store(store)
    if listing.checkpoints:
        header = ("checkpoint", "step", "epoch", "score", "size", "age", "attempt", "finite")
        _print_lines(*_format_table([header, *map(_format_row, listing.checkpoints)], right_aligned_from=1))
    elif not listing.bad_checkpoints:
        _print_lines(f"{store.location} contains no checkpoint")
    _print_lines(
        *(
            f"{checkpoint.name} was adopted from another tool"
            for checkpoint in listing.checkpoints
            if checkpoint.adopted
        )
    )
    _print_lines(
        *(f"{bad_checkpoint.name} is bad: {bad_checkpoint.reason}" for bad_checkpoint in listing.bad_checkpoints)
    )
    _print_lines(
        *(
            f"{bad_checkpoint.name} is in quarantine{f': {bad_checkpoint.reason}' if bad_checkpoint.reason else ''}"
            for bad_checkpoint in listing.quarantined_checkpoints
        )
    )
    _print_lines(*_describe_foreign(listing.foreign_files, store))
    return EXIT_OK


def _format_row(checkpoint: Checkpoint) -> tuple[str, ...]:
    score = "-" if checkpoint.score is None else f"{checkpoint.score:.5g}"
    attempt = str(checkpoint.attempt or "-")
    finite = "yes" if checkpoint.finite else "no"
    age = _format_age(time.time() - checkpoint.time)
    return (
        checkpoint.name,
        str(checkpoint.step),
        str(checkpoint.epoch),
        score,
        _format_size(checkpoint.bytes),
        age,
        attempt,
        finite,
    )


def _describe_foreign(foreign_files: Iterable[str], store: Store) -> list[str]:
    return [
        f"{name} is not a checkpoint of CheckpointRecovery; to resume from it: {adopt_command(store, name)}"
        for name in foreign_files
    ]


def _run_adopt(options: argparse.Namespace) -> int:
    from stormproof.checkpoint.adoption import adopt  # noqa: PLC0415

    store = Store(options.file.parent) if options.into is None else _make_store(options.into)
    previous_names = [checkpoint.name for checkpoint in store.read_checkpoints()]
    adopted_checkpoint = adopt(options.file, store)
    location = store.storage.locate(adopted_checkpoint.path.name)
    _print_lines(
        f"adopted as {location}: step {adopted_checkpoint.step}, epoch {adopted_checkpoint.epoch}; "
        f"{options.file} is unchanged",
        f"the next start resumes from it{f' instead of {previous_names[-1]}' if previous_names else ''}, but not "
        "bit for bit: the file contains neither random states nor the data position",
    )
    return EXIT_OK


def _run_doctor(options: argparse.Namespace) -> int:
    from stormproof.cli.doctor import (  # noqa: PLC0415
        address_risks,
        checkpoint_risks,
        file_system_risks,
        installation_risks,
        object_store_risks,
    )  # fmt: skip

    unsupported_address_risks = address_risks(options.folder or "")
    risks = [*installation_risks(), *unsupported_address_risks]
    if options.folder is not None and not unsupported_address_risks:
        store = _open_store(options.folder)
        if store.storage.folder is None:
            risks += object_store_risks(store.storage)
        else:
            risks += file_system_risks(store.folder)
        risks += checkpoint_risks(store)
    width = shutil.get_terminal_size().columns
    for number, risk in enumerate(risks, 1):
        _print_lines(*_wrap_paragraph(f"{number}. ", risk.summary, width))
        for label, text in (("where", risk.location), ("why", risk.reason), ("fix", risk.advice)):
            _print_lines(*_wrap_paragraph(f"   {label:6}", text, width))
    _print_lines(f"{len(risks)} risk{'s' if len(risks) > 1 else ''} found" if risks else "no risks found")
    return EXIT_RISKS_FOUND if risks else EXIT_OK


def _open_store(folder: str) -> Store:
    """Returns the store of an existing folder or of a URL."""
    store = _make_store(folder)
    if store.storage.folder is not None and not store.folder.is_dir():
        problem = "is not a folder" if store.folder.exists() else "does not exist"
        raise UsageError(f"{folder} {problem}: pass a folder of checkpoints or a run folder")
    return store


def _make_store(folder: str) -> Store:
    """Returns the store of a URL, of ``folder`` itself, or of ``checkpoints/`` in a run folder."""
    try:
        if is_url(folder):
            return Store(ObjectStorage(folder, retry_seconds=RETRY_SECONDS))
    except ValueError as error:
        raise UsageError(str(error)) from error
    path = Path(folder)
    subfolder = path / "checkpoints"
    return Store(subfolder if subfolder.is_dir() else path)


def _format_table(rows: Sequence[Sequence[str]], right_aligned_from: int = 99) -> list[str]:
    """Formats rows as columns separated by two spaces. Columns from ``right_aligned_from`` on are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if index >= right_aligned_from else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [line.rstrip() for line in lines]


def _wrap_paragraph(label: str, text: str, width: int) -> list[str]:
    # paths and commands are not wrapped, so that they can be copied
    wrapper = textwrap.TextWrapper(
        max(width, 40), label, " " * len(label), break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(text)


def _format_size(byte_count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if byte_count < 1000:
            return f"{byte_count:.3g} {unit}"
        byte_count = byte_count / 1000  # type: ignore[assignment]
    return f"{byte_count:.3g} TB"


def _format_age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _print_lines(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")


def _print_error(message: str, code: int) -> int:
    sys.stdout.flush()
    print_error(f"stormproof: {message}\n")
    return code


@dataclass(frozen=True)
class Listing:
    """Checkpoints of a folder. Use :func:`stormproof.checkpoint.resolution.resolve` to verify their content.

    Attributes:
        checkpoints: Checkpoints with an intact manifest and the right file size, newest first.
        bad_checkpoints: Committed checkpoints with a missing or damaged manifest or a wrong file size, newest first.
        quarantined_checkpoints: Checkpoints in ``quarantine/``, with the reasons from the log.
        foreign_files: ``.ckpt`` files of other tools.
    """

    checkpoints: Sequence[Checkpoint]
    bad_checkpoints: Sequence[BadCheckpoint]
    quarantined_checkpoints: Sequence[BadCheckpoint]
    foreign_files: Sequence[str]


def list_store(store: Store) -> Listing:
    """Lists a folder or an object store. A missing folder counts as empty.

    Raises:
        OSError: If the folder cannot be read.
    """
    catalog = store.catalog
    files = catalog.list_files()
    names, log = extract_names(files), catalog.read_log()
    manifests = catalog.read_manifests([name for name in names if f"{name}.json" in files])
    bad_reasons = manifests.bad_reasons | {
        checkpoint.name: problem
        for checkpoint in manifests.checkpoints
        if (problem := catalog.find_size_problem(checkpoint)) is not None
    }
    unfinished_names = [name for name in names if f"{name}.json" not in files]
    bad_reasons |= dict.fromkeys(find_without_manifest(catalog, unfinished_names, log), "its manifest is missing")
    return Listing(
        [checkpoint for checkpoint in manifests.checkpoints if checkpoint.name not in bad_reasons],
        [BadCheckpoint(name, bad_reasons[name]) for name in names if name in bad_reasons],
        _list_quarantined(store, log),
        sorted(file for file in files if is_foreign(file)),
    )


def _list_quarantined(store: Store, log: CommitLog) -> list[BadCheckpoint]:
    events = [event for event in log.events if event["event"] == "quarantined"]
    reasons = {event["name"]: str(event.get("reason", "")) for event in events}
    names = {file.partition(".")[0] for file in store.list_quarantined_files()}
    return [BadCheckpoint(name, reasons.get(name, "")) for name in sorted(names)]


if __name__ == "__main__":
    sys.exit(main())
