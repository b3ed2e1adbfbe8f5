"""What a folder holds, and which checkpoint to go on from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stormproof.checkpoint.commit_log import Log, read_log
from stormproof.checkpoint.file_names import LOG, is_temporary, parse, sequence_in
from stormproof.checkpoint.manifest import Checkpoint, LogMark
from stormproof.checkpoint.read_retry import retry_read
from stormproof.checkpoint.shared_verification import verify_once_per_node
from stormproof.checkpoint.verification import damage_of, read_failure, read_manifest


@dataclass(frozen=True)
class Bad:
    """A committed checkpoint that must not be resumed from.

    Attributes:
        name: Name without ``.ckpt``.
        reason: Why it must not be used.
        is_unreadable: Whether reading failed. The content may be intact, so the files stay in place.
    """

    name: str
    reason: str
    is_unreadable: bool = False


@dataclass(frozen=True)
class Resolution:
    """What a folder held when it was looked at; nothing in it was changed.

    Attributes:
        chosen: the newest good checkpoint, verified to the last bit; None if there is none.
        older: those before it whose manifest is whole, newest first; their content was not read, unless
            :func:`resolve` was to be thorough.
        bad: committed, and damaged, not loadable, not finite or without manifest; newest first.
        lost: names that the log says were committed, and whose files are gone.
        leftovers: files of ours that no commit finished, or no deletion.
        foreign: ``.ckpt`` files of other tools; ``stormproof adopt`` takes one over.
        log_damage: what is broken in the log, in words; it keeps nobody from resuming.
        log_torn: whether a crash cut the log's last line off, which is harmless.
        seen: what was looked at; equal as long as nobody commits to or deletes from the folder.
    """

    chosen: Checkpoint | None
    older: Sequence[Checkpoint] = ()
    bad: Sequence[Bad] = ()
    lost: Sequence[str] = ()
    leftovers: Sequence[str] = ()
    foreign: Sequence[str] = ()
    log_damage: Sequence[str] = ()
    log_torn: bool = False
    seen: object = field(default=None, repr=False)

    @property
    def skipped(self) -> list[Bad]:
        """Bad checkpoints that are newer than the chosen one."""
        chosen = 0 if self.chosen is None else self.chosen.sequence
        return [bad for bad in self.bad if sequence_in(f"{bad.name}.ckpt") > chosen]


def resolve(folder: Path, *, thorough: bool = False) -> Resolution:
    """Classifies everything in ``folder`` and finds the newest good checkpoint; read-only.

    Files are listed before the log is read: in the folder of a run that goes on, what is deleted in between is then
    known to be deleted.

    Args:
        folder: a folder of checkpoints; one that is not there is empty.
        thorough: verify the content of every checkpoint, not only down to the newest good one.

    Raises:
        OSError: if the folder cannot be read.
    """
    files = list_files(folder)
    ordered = names_in(files)
    found = read_manifests(folder, [name for name in ordered if f"{name}.json" in files])
    good = _verify(found, thorough)
    log = read_log(folder / LOG)
    bad = {name: reason for name, reason in found.bad.items() if name not in log.names("deleted")}
    unfinished = [name for name in ordered if f"{name}.json" not in files]
    bad |= dict.fromkeys(without_manifest(folder, unfinished, log), "its manifest is gone")
    lost = _lost(folder, log)
    if bad or lost:  # a run that goes on here may have deleted them meanwhile; it says so before it does
        now = read_log(folder / LOG)
        bad = {name: reason for name, reason in bad.items() if name not in now.names("deleted")}
        lost = [name for name in lost if name not in now.names("deleted", "quarantined")]
    remains = {*unfinished, *found.bad} - set(bad) - _committed_since(folder, unfinished)
    marks = [found.marks[checkpoint.name] for checkpoint in found.whole]
    return Resolution(
        chosen=good[0] if good else None,
        older=good[1:],
        bad=[Bad(name, bad[name], name in found.unreadable) for name in ordered if name in bad],
        lost=lost,
        leftovers=sorted(file for file in files if is_temporary(file) or _stem(file) in remains),
        foreign=sorted(file for file in files if is_foreign(file)),
        log_damage=log.damage_since(marks[0] if marks else None),
        log_torn=log.torn > 0,
        seen=_seen(files, log),
    )


@dataclass
class Found:
    """The manifests of a folder, newest first."""

    whole: list[Checkpoint] = field(default_factory=list)
    marks: dict[str, LogMark] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)


def manifests(folder: Path) -> list[Checkpoint]:
    """The checkpoints of ``folder`` whose manifests are whole, oldest first; their content is not read."""
    names = [parsed[0] for file in list_files(folder) if file.endswith(".json") and (parsed := parse(file))]
    return sorted(read_manifests(folder, names).whole, key=lambda checkpoint: checkpoint.sequence)


def list_files(folder: Path) -> set[str]:
    """The names in ``folder``; but a folder that is called like a checkpoint is none, and in nobody's way."""
    try:
        return retry_read(lambda: {path.name for path in folder.iterdir() if not _is_folder_like_a_checkpoint(path)})
    except FileNotFoundError:
        return set()


def _is_folder_like_a_checkpoint(path: Path) -> bool:
    like_one = sequence_in(path.name) or path.suffix == ".ckpt"
    return bool(like_one) and path.is_dir() and not path.is_symlink()


def read_manifests(folder: Path, names: Sequence[str]) -> Found:
    """Reads the manifests of these checkpoints."""
    found = Found()
    for name in names:
        try:
            checkpoint, mark = retry_read(partial(read_manifest, folder / f"{name}.ckpt"))
        except ValueError as error:
            found.bad[name] = str(error)
        except OSError as error:
            found.bad[name] = f"its manifest cannot be read: {error.strerror}"
            if not isinstance(error, FileNotFoundError):
                found.unreadable.add(name)
        else:
            found.whole.append(checkpoint)
            found.marks[name] = mark
    return found


def _verify(found: Found, thorough: bool) -> list[Checkpoint]:
    """The checkpoints that are good, newest first; those behind the first good one are taken on trust, or not."""
    good: list[Checkpoint] = []
    verify = damage_of if thorough else verify_once_per_node
    for checkpoint in found.whole:
        try:
            problem = None if good and not thorough else verify(checkpoint)
        except OSError as error:
            problem = read_failure(error)
            found.unreadable.add(checkpoint.name)
        if problem is None:
            good.append(checkpoint)
        else:
            found.bad[checkpoint.name] = problem
    return good


def what_is_there(folder: Path) -> object:
    """What :attr:`Resolution.seen` would be now."""
    return _seen(list_files(folder), read_log(folder / LOG))


def _seen(files: set[str], log: Log) -> object:
    return frozenset(file for file in files if sequence_in(file)), LogMark.of(log.content)


def names_in(files: set[str]) -> list[str]:
    """The names of checkpoints, without ending, the newest first."""
    parsed = {parsed[:2] for parsed in map(parse, files) if parsed}
    return [name for name, _ in sorted(parsed, key=lambda pair: pair[1], reverse=True)]


def _stem(file: str) -> str | None:
    parsed = parse(file)
    return parsed[0] if parsed else None


def is_foreign(file: str) -> bool:
    """Whether it is a checkpoint's name, and not one of ours."""
    return file.endswith(".ckpt") and not file.startswith(".") and parse(file) is None


def _committed_since(folder: Path, unfinished: Sequence[str]) -> set[str]:
    """Those whose manifest came while the folder was being looked at: a run goes on there."""
    return {name for name in unfinished if os.path.lexists(folder / f"{name}.json")}


def without_manifest(folder: Path, unfinished: Sequence[str], log: Log) -> set[str]:
    """Those of ``unfinished`` that the log says were committed."""
    committed = log.names("committed", "quarantined") - log.names("deleted")
    return (committed & set(unfinished)) - _committed_since(folder, unfinished)


def _lost(folder: Path, log: Log) -> list[str]:
    """What was committed and is gone without a word; asked after the log was read, which may be ahead of the list."""
    silent = log.names("committed") - log.names("deleted", "quarantined", "lost")
    files = {name: (folder / f"{name}.ckpt", folder / f"{name}.json") for name in silent}
    return sorted(name for name, paths in files.items() if not any(map(os.path.lexists, paths)))
