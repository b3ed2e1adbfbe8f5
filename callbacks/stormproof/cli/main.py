"""The command ``stormproof``: look at a folder of checkpoints, take one over, find what would lose work."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from stormproof.checkpoint import Checkpoint, Resolution, Store
from stormproof.checkpoint.file_names import LOG
from stormproof.errors import StormproofError

GOOD, FOUND, MISTAKE, DAMAGED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 74, 130, 141


class MistakeError(StormproofError):
    """What was typed cannot be done: what, and what would be right."""

    exit_code = MISTAKE


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise MistakeError(f"{message}; {self.prog} --help shows what there is")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after the command's name; ``sys.argv`` by default.

    Returns:
        0 where all is good, 1 where ``doctor`` found something, 2 for a mistake in what was typed, 74 where a
        checkpoint is damaged or the disk fails.
    """
    try:
        words = _parser().parse_args(arguments)
        code = words.run(words)
        sys.stdout.flush()
        return code  # noqa: TRY300 (the flush may find that the reader has left)
    except BrokenPipeError:  # `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except StormproofError as error:
        return _end(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _end(f"{where}{error.strerror or error}", DAMAGED)
    except KeyboardInterrupt:
        return _end("stopped by Ctrl-C", INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="stormproof", description="Looks after folders of checkpoints.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    where = "a folder of checkpoints, or a run folder with checkpoints/ in it"
    for name, run, what in (
        ("verify", _verify, "read every checkpoint, and name each bad one; 74 if there is one"),
        ("list", _list, "show what there is, at a glance"),
    ):
        command = commands.add_parser(name, help=what, description=f"{name}: {what}.")
        command.add_argument("folder", metavar="DIR", help=where)
        command.set_defaults(run=run)
    what = "take a checkpoint of stock Lightning over, to go on from it; the file stays"
    command = commands.add_parser("adopt", help=what, description=f"adopt: {what}.")
    command.add_argument("file", metavar="FILE", type=Path, help="a .ckpt file")
    command.add_argument("--into", metavar="DIR", help=f"{where}; the file's own folder by default")
    command.set_defaults(run=_adopt)
    what = "find what would lose work, in the installation and in a folder; 1 if there is something"
    command = commands.add_parser("doctor", help=what, description=f"doctor: {what}.")
    command.add_argument("folder", metavar="DIR", nargs="?", help=where)
    command.set_defaults(run=_doctor)
    return parser


def _verify(words: argparse.Namespace) -> int:
    store = _store(words.folder)
    found = store.resolve(thorough=True)
    good = [each for each in (found.chosen, *found.older) if each is not None]
    said = {each.name: "good" for each in good}
    said |= {bad.name: f"bad: {bad.reason}" for bad in found.bad}
    said |= dict.fromkeys(found.lost, "lost: it was committed, and its files are gone")
    if not said and not found.log_damage:
        raise MistakeError(". ".join([f"{store.folder} holds no checkpoint", *_others(found.foreign, store.folder)]))
    rows = [(name, said[name]) for name in sorted(said, key=lambda name: int(name.partition("-")[0]), reverse=True)]
    rows += [(LOG, f"damaged: {problem}") for problem in found.log_damage]
    _say(*_table(rows))
    _say(_next_start(found), *_others(found.foreign, store.folder))
    return DAMAGED if found.bad or found.lost or found.log_damage else GOOD


def _next_start(found: Resolution) -> str:
    if found.chosen is None:
        return "there is no good checkpoint" + (": a start is refused" if found.bad or found.lost else "")
    return f"the next start goes on from {found.chosen.name}"


def _list(words: argparse.Namespace) -> int:
    from stormproof.checkpoint.listing import glance  # noqa: PLC0415

    store = _store(words.folder)
    found = glance(store.folder)
    if found.checkpoints:
        head = ("checkpoint", "step", "epoch", "score", "size", "age", "attempt", "finite")
        _say(*_table([head, *map(_row, found.checkpoints)], right_from=1))
    elif not found.bad:
        _say(f"{store.folder} holds no checkpoint")
    _say(*(f"{each.name} was adopted from another tool" for each in found.checkpoints if each.adopted))
    _say(*(f"{bad.name} is bad: {bad.reason}" for bad in found.bad))
    _say(*(f"{bad.name} is in quarantine{f': {bad.reason}' if bad.reason else ''}" for bad in found.quarantined))
    _say(*_others(found.foreign, store.folder))
    return GOOD


def _row(each: Checkpoint) -> tuple[str, ...]:
    score = "-" if each.score is None else f"{each.score:.5g}"
    attempt = str(each.attempt or "-")
    finite = "yes" if each.finite else "no"
    age = _age(time.time() - each.time)
    return each.name, str(each.step), str(each.epoch), score, _size(each.bytes), age, attempt, finite


def _others(foreign: Iterable[str], folder: Path) -> list[str]:
    return [
        f"{name} is not ours; to go on from it: stormproof adopt {shlex.quote(str(folder / name))}" for name in foreign
    ]


def _adopt(words: argparse.Namespace) -> int:
    from stormproof.checkpoint.adoption import adopt  # noqa: PLC0415

    into = words.file.parent if words.into is None else _folder_in(words.into)
    before = [each.name for each in Store(into).checkpoints()]
    done = adopt(words.file, into)
    _say(
        f"adopted as {done.path}: step {done.step}, epoch {done.epoch}; {words.file} stays as it is",
        f"the next start goes on from it{f' and not from {before[-1]}' if before else ''}; that resume is not exact: "
        "random numbers and the position in the data are not in the file",
    )
    return GOOD


def _doctor(words: argparse.Namespace) -> int:
    from stormproof.cli.doctor import (  # noqa: PLC0415
        address_risks,
        checkpoint_risks,
        file_system_risks,
        installation_risks,
    )  # fmt: skip

    elsewhere = address_risks(words.folder or "")
    risks = [*installation_risks(), *elsewhere]
    if words.folder is not None and not elsewhere:
        folder = _store(words.folder).folder
        risks += [*file_system_risks(folder), *checkpoint_risks(folder)]
    width = shutil.get_terminal_size().columns
    for number, risk in enumerate(risks, 1):
        _say(*_paragraph(f"{number}. ", risk.what, width))
        for label, text in (("where", risk.where), ("why", risk.why), ("do", risk.advice)):
            _say(*_paragraph(f"   {label:6}", text, width))
    _say(f"{len(risks)} found" if risks else "nothing found that would lose work")
    return FOUND if risks else GOOD


def _store(folder: str) -> Store:
    """The store of a folder that must be there."""
    path = _folder_in(folder)
    if not path.is_dir():
        there = "is no folder" if path.exists() else "is not there"
        raise MistakeError(f"{folder} {there}: give a folder of checkpoints, or a run folder")
    return Store(path)


def _folder_in(folder: str) -> Path:
    """The folder of checkpoints: ``folder`` itself, or the one in a run folder."""
    try:
        path = Store(folder).folder
    except ValueError as error:
        raise MistakeError(str(error)) from error
    inside = path / "checkpoints"
    return inside if inside.is_dir() else path


def _table(rows: Sequence[Sequence[str]], right_from: int = 99) -> list[str]:
    """Columns two blanks apart, those from ``right_from`` on to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if index >= right_from else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [line.rstrip() for line in lines]


def _paragraph(label: str, text: str, width: int) -> list[str]:
    # a path or a command is not broken: it could not be copied
    wrap = textwrap.TextWrapper(max(width, 40), label, " " * len(label), break_long_words=False, break_on_hyphens=False)
    return wrap.wrap(text)


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = count / 1000  # type: ignore[assignment]
    return f"{count:.3g} TB"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")


def _end(sentence: str, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"stormproof: {sentence}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
