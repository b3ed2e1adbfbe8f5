"""SIGKILL loses nothing that was written, a power cut does: every state that it may leave, at every moment."""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from stormproof.checkpoint import Retention, Store, atomic, commit_log
from stormproof.checkpoint import store as store_module
from stormproof.checkpoint.storage import posix
from stormproof.errors import DamagedError
from tests.stormproof.checkpoint.crash_states import Note, Recorder, crash_states, record_operations, write_tree
from tests.support.checkpoint_files import commit_checkpoint, flip_bit, make_store
from tests.support.sharded_checkpoints import commit_shards

FOLDER = "runs/mine/checkpoints"


def _commit_steps(recorder: Recorder, store: Store, attempt: int, steps: range) -> None:
    for step in steps:
        result = commit_checkpoint(store, step, attempt=attempt)
        recorder.record_event("committed", result.name)
        store.apply_retention(Retention())


def _two_attempts(recorder: Recorder, root: Path) -> None:
    """A run; then one that finds its newest checkpoint damaged, and what a kill left over."""
    store = Store(root / FOLDER)
    _commit_steps(recorder, store, store.begin_attempt(store.resolve()), range(10, 60, 10))
    recorder.record_event("being damaged", "000005-step-50")
    flip_bit(store.folder / "000005-step-50.ckpt")
    recorder.flush_all()
    recorder.record_event("damaged", "000005-step-50")
    (store.folder / ".000006-step-60.ckpt.0123abcd.tmp").write_bytes(b"half")
    (store.folder / "000007-step-70.ckpt").write_bytes(b"whole, without manifest")
    _commit_steps(recorder, store, store.begin_attempt(store.resolve()), range(50, 90, 10))


def _sharded_attempts(recorder: Recorder, root: Path) -> None:
    """As ``_two_attempts``, of sharded checkpoints; each is 3 files."""
    store = Store(root / FOLDER)
    for steps, attempt_count in ((range(10, 50, 10), 1), (range(50, 70, 10), 2)):
        attempt = store.begin_attempt(store.resolve())
        assert attempt == attempt_count
        for step in steps:
            recorder.record_event("committed", commit_shards(store, step, attempt=attempt).name)
            store.apply_retention(Retention())
        (store.folder / "000009-step-90.ckpt").mkdir(exist_ok=True)
        (store.folder / "000009-step-90.ckpt" / "__0_0.distcp").write_bytes(b"half")


def _one_attempt(recorder: Recorder, root: Path) -> None:
    store = Store(root / FOLDER)
    _commit_steps(recorder, store, store.begin_attempt(store.resolve()), range(10, 50, 10))


def _check_every_state(program: Callable[[Recorder, Path], None], tmp_path: Path) -> int:
    """Runs ``program``, and holds every crash state of it to what the store promises; how many there were."""
    root = tmp_path / "recorded"
    root.mkdir()
    with record_operations(root) as recorder:
        program(recorder, root)
    count = 0
    fsync, os.fsync = os.fsync, lambda descriptor: None  # of no account here, and slow
    try:
        for before, after, tree in crash_states(recorder.operations, recorder.folders):
            if before and before[-1].event == "being damaged":  # by the test, not by the store
                continue
            copy = tmp_path / "state"
            write_tree(tree, copy)
            tempfile.tempdir = str(copy)  # with the markers of verified files
            _check_state(Store(copy / FOLDER), before, after)
            shutil.rmtree(copy)
            count += 1
    finally:
        os.fsync, tempfile.tempdir = fsync, None
    return count


def _check_state(store: Store, before: list[Note], after: list[Note]) -> None:
    damaged = {note.name for note in before if note.event == "damaged"}
    result = [note.name for note in before if note.event == "committed" and note.name not in damaged]
    in_flight = [note.name for note in after if note.event == "committed"][:1]
    resolution = store.resolve(verify_all=True)
    chosen = store.choose_checkpoint(resolution)
    assert (chosen.name if chosen else None) in {result[-1] if result else None, *in_flight}
    assert {bad.name for bad in resolution.bad_checkpoints} <= damaged
    assert not resolution.lost_names
    attempt = store.begin_attempt(resolution)
    new = commit_checkpoint(store, 1000, attempt=attempt)
    store.apply_retention(Retention())
    second_resolution = store.resolve()
    assert second_resolution.chosen_checkpoint == new
    assert (
        list(second_resolution.bad_checkpoints),
        list(second_resolution.lost_names),
        list(second_resolution.leftover_files),
    ) == (
        [],
        [],
        [],
    )


@pytest.mark.slow
def test_a_good_checkpoint_is_found_in_every_crash_state(tmp_path: Path):
    assert _check_every_state(_two_attempts, tmp_path) > 1000


@pytest.mark.slow
def test_a_good_sharded_checkpoint_is_found_in_every_crash_state(tmp_path: Path):
    assert _check_every_state(_sharded_attempts, tmp_path) > 800


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
def _late(path: Path, at: Callable[[str], object] | None = None, **options: bool) -> Iterator[BinaryIO]:
    """As atomic_write; but a checkpoint gets its name only after its manifest has."""
    aside = path.with_suffix(".late")
    with atomic.atomic_write(aside if path.suffix == ".ckpt" else path, at, **options) as file:
        yield file
    if path.suffix == ".json":
        aside.replace(path.with_suffix(".ckpt"))
        atomic.fsync_folder(path.parent)


def _manifest_first(recorder: Recorder, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posix, "atomic_write", _late)
        _one_attempt(recorder, root)


def _folder_not_synced_in_its_parent(recorder: Recorder, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "make_folder", lambda path: path.mkdir(parents=True))
        _one_attempt(recorder, root)


def _deleted_without_a_word(recorder: Recorder, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        append = commit_log.append

        def append_others(log: Any, events: Any, log_bytes: int | None) -> None:
            append(log, [event for event in events if event["event"] != "deleted"], log_bytes)

        patch.setattr(commit_log, "append", append_others)
        _one_attempt(recorder, root)


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [_without(stat.S_ISREG), _without(stat.S_ISDIR), _manifest_first, _folder_not_synced_in_its_parent,
     _deleted_without_a_word],
    ids=["no fsync of files", "no fsync of folders", "manifest first", "no fsync of parents", "no log of deletions"],
)  # fmt: skip
def test_a_store_that_skips_a_protocol_step_fails_in_some_crash_state(
    broken: Callable[[Recorder, Path], None], tmp_path: Path
):
    with pytest.raises((AssertionError, DamagedError)):
        _check_every_state(broken, tmp_path)


@pytest.mark.slow
def test_the_same_program_unbroken_passes(tmp_path: Path):
    assert _check_every_state(_one_attempt, tmp_path) > 150


def test_the_recorder_sees_a_commit_as_it_is_meant(tmp_path: Path):
    """The order that all rests on: content, then name, then the manifest's content, then its name, then the log."""
    make_store(tmp_path / "before", [10])  # a process's first commit imports what it needs, and that opens files too
    store = Store(tmp_path / "store")
    store.folder.mkdir()
    with record_operations(store.folder) as recorder:
        attempt = store.begin_attempt(store.resolve())
        start = len(recorder.operations)
        commit_checkpoint(store, 10, attempt=attempt)
        recorder.record_changes()
    kinds = [type(operation).__name__ for operation in recorder.operations[start:]]
    file = ["Write", "NameChange", "Fsync", "NameChange", "NameChange", "Fsync"]  # a rename is two names
    assert kinds == [*file, *file, "Write", "Fsync"]
