"""SIGKILL loses nothing that was written, a power cut does: every state that it may leave, at every moment."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from stormproof.checkpoint import Retention, Store, atomic, commit_log, store
from tests.stormproof.checkpoint.crash_states import Note, Recorder, crash_states, lay_out, recording
from tests.support.some_checkpoints import commit, filled, flip

FOLDER = "runs/mine/checkpoints"


def _commits(recorder: Recorder, store: Store, attempt: int, steps: range) -> None:
    for step in steps:
        done = commit(store, step, attempt=attempt)
        recorder.note("committed", done.name)
        store.retain(Retention())


def _two_attempts(recorder: Recorder, root: Path) -> None:
    """A run; then one that finds its newest checkpoint damaged, and what a kill left over."""
    store = Store(root / FOLDER)
    _commits(recorder, store, store.begin_attempt(store.resolve()), range(10, 60, 10))
    recorder.note("being damaged", "000005-step-50")
    flip(store.folder / "000005-step-50.ckpt")
    recorder.all_on_disk()
    recorder.note("damaged", "000005-step-50")
    (store.folder / ".000006-step-60.ckpt.0123abcd.tmp").write_bytes(b"half")
    (store.folder / "000007-step-70.ckpt").write_bytes(b"whole, without manifest")
    _commits(recorder, store, store.begin_attempt(store.resolve()), range(50, 90, 10))


def _one_attempt(recorder: Recorder, root: Path) -> None:
    store = Store(root / FOLDER)
    _commits(recorder, store, store.begin_attempt(store.resolve()), range(10, 50, 10))


def _check_all(program: Callable[[Recorder, Path], None], tmp_path: Path) -> int:
    """Runs ``program``, and holds every crash state of it to what the store promises; how many there were."""
    root = tmp_path / "recorded"
    root.mkdir()
    with recording(root) as recorder:
        program(recorder, root)
    count = 0
    fsync, os.fsync = os.fsync, lambda descriptor: None  # of no account here, and slow
    try:
        for before, after, tree in crash_states(recorder.operations, recorder.folders):
            if before and before[-1].what == "being damaged":  # by the test, not by the store
                continue
            copy = tmp_path / "state"
            lay_out(tree, copy)
            _check(Store(copy / FOLDER), before, after)
            shutil.rmtree(copy)
            count += 1
    finally:
        os.fsync = fsync
    return count


def _check(store: Store, before: list[Note], after: list[Note]) -> None:
    damaged = {note.name for note in before if note.what == "damaged"}
    done = [note.name for note in before if note.what == "committed" and note.name not in damaged]
    in_flight = [note.name for note in after if note.what == "committed"][:1]
    found = store.resolve(thorough=True)
    chosen = store.choose(found)
    assert (chosen.name if chosen else None) in {done[-1] if done else None, *in_flight}
    assert {bad.name for bad in found.bad} <= damaged
    assert not found.lost
    attempt = store.begin_attempt(found)
    new = commit(store, 1000, attempt=attempt)
    store.retain(Retention())
    again = store.resolve()
    assert again.chosen == new
    assert (list(again.bad), list(again.lost), list(again.leftovers)) == ([], [], [])


@pytest.mark.slow
def test_a_good_checkpoint_is_found_in_every_crash_state(tmp_path: Path):
    assert _check_all(_two_attempts, tmp_path) > 1000


@contextmanager
def _no_fsync_of(kind: Callable[[int], bool]) -> Iterator[None]:
    fsync = os.fsync
    os.fsync = lambda descriptor: None if kind(os.fstat(descriptor).st_mode) else fsync(descriptor)
    try:
        yield
    finally:
        os.fsync = fsync


def _without(kind: Callable[[int], bool]) -> Callable[[Recorder, Path], None]:
    def program(recorder: Recorder, root: Path) -> None:
        with _no_fsync_of(kind):
            _one_attempt(recorder, root)

    return program


@contextmanager
def _late(path: Path, at: Callable[[str], object] | None = None) -> Iterator[BinaryIO]:
    """As atomic_write; but a checkpoint gets its name only after its manifest has."""
    aside = path.with_suffix(".late")
    with atomic.atomic_write(aside if path.suffix == ".ckpt" else path, at) as file:
        yield file
    if path.suffix == ".json":
        aside.replace(path.with_suffix(".ckpt"))
        atomic.fsync_folder(path.parent)


def _manifest_first(recorder: Recorder, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "atomic_write", _late)
        _one_attempt(recorder, root)


def _folder_not_synced_in_its_parent(recorder: Recorder, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "make_folder", lambda folder: folder.mkdir(parents=True))
        _one_attempt(recorder, root)


def _deleted_without_a_word(recorder: Recorder, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        append = commit_log.append
        words = lambda path, events: append(path, [event for event in events if event["event"] != "deleted"])  # noqa: E731
        patch.setattr(commit_log, "append", words)
        _one_attempt(recorder, root)


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [_without(stat.S_ISREG), _without(stat.S_ISDIR), _manifest_first, _folder_not_synced_in_its_parent,
     _deleted_without_a_word],
    ids=["no fsync of files", "no fsync of folders", "manifest first", "no fsync of parents", "no log of deletions"],
)  # fmt: skip
def test_a_store_that_leaves_something_out_fails_in_some_crash_state(
    broken: Callable[[Recorder, Path], None], tmp_path: Path
):
    with pytest.raises((AssertionError, store.DamagedError)):
        _check_all(broken, tmp_path)


@pytest.mark.slow
def test_the_same_program_unbroken_passes(tmp_path: Path):
    assert _check_all(_one_attempt, tmp_path) > 150


def test_the_recorder_sees_a_commit_as_it_is_meant(tmp_path: Path):
    """The order that all rests on: content, then name, then the manifest's content, then its name, then the log."""
    filled(tmp_path / "before", [10])  # a process's first commit imports what it needs, and that opens files too
    store = Store(tmp_path / "store")
    store.folder.mkdir()
    with recording(store.folder) as recorder:
        attempt = store.begin_attempt(store.resolve())
        start = len(recorder.operations)
        commit(store, 10, attempt=attempt)
        recorder.look()
    kinds = [type(operation).__name__ for operation in recorder.operations[start:]]
    file = ["Write", "Name", "Sync", "Name", "Name", "Sync"]  # a rename is two names
    assert kinds == [*file, *file, "Write", "Sync"]
