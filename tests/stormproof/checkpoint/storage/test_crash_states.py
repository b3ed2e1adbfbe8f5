"""Resumes from the state of an object store after each request of a process that was killed."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from obstore.store import MemoryStore

from stormproof.checkpoint import Retention, Store, commit_log
from stormproof.checkpoint import store as store_module
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.errors import DamagedError, FolderLostError, RanksDisagreeError
from tests.stormproof.checkpoint.storage.request_recorder import KilledError, Requests
from tests.support.checkpoint_files import commit_checkpoint
from tests.support.object_stores import flip_object_bit

Events = list[tuple[str, str]]
Program = Callable[[ObjectStorage, Events], None]


def _commit_steps(store: Store, attempt: int, steps: range, events: Events) -> None:
    for step in steps:
        events.append(("begins", ""))
        events.append(("committed", commit_checkpoint(store, step, attempt=attempt).name))
        store.apply_retention(Retention())


def _two_attempts(storage: ObjectStorage, events: Events) -> None:
    """A run; then one that finds its newest checkpoint damaged and rolls back a good one."""
    store = Store(storage)
    _commit_steps(store, store.begin_attempt(store.resolve()), range(10, 50, 10), events)
    flip_object_bit(ObjectStorage(storage.location, store=storage._store), "000004-step-40.ckpt")
    events.append(("damaged", "000004-step-40"))
    attempt = store.begin_attempt(store.resolve())
    _commit_steps(store, attempt, range(40, 70, 10), events)


def _run_to(limit: int | None, program: Program, storage: ObjectStorage) -> tuple[Events, int]:
    events: Events = []
    requests = Requests(storage, limit)
    with suppress(KilledError):
        program(storage, events)
    return events, requests.count


def _check(storage: ObjectStorage, events: Events) -> None:
    damaged = {name for event, name in events if event == "damaged"}
    committed = [name for event, name in events if event == "committed" and name not in damaged]
    is_committing = bool(events) and events[-1][0] == "begins"
    store = Store(storage)
    resolution = store.resolve(verify_all=True)
    chosen = store.choose_checkpoint(resolution)
    expected = {committed[-1] if committed else None}
    if chosen is not None and is_committing:  # the manifest may be there, and the commit not have returned
        expected.add(f"{max(int(name[:6]) for _, name in events if name) + 1:06d}-step-{chosen.step}"
                     if any(name for _, name in events) else "000001-step-10")  # fmt: skip
    assert (chosen.name if chosen else None) in expected
    assert {bad.name for bad in resolution.bad_checkpoints} <= damaged
    assert not resolution.lost_names
    assert not resolution.log_problems
    attempt = store.begin_attempt(resolution)
    new = commit_checkpoint(store, 1000, attempt=attempt)
    store.apply_retention(Retention())
    second = store.resolve(verify_all=True)
    assert second.chosen_checkpoint == new
    assert ([*second.bad_checkpoints], [*second.lost_names], [*second.leftover_files]) == ([], [], [])


def _check_every_prefix(program: Program, make_storage: Callable[[], ObjectStorage], every: int = 1) -> int:
    _, total = _run_to(None, program, make_storage())
    for limit in range(0, total, every):
        storage = make_storage()
        events, _ = _run_to(limit, program, storage)
        Requests(storage)
        _check(storage, events)
    return total


def _make_memory_storage() -> ObjectStorage:
    return ObjectStorage("s3://bucket/run", store=MemoryStore(), retry_seconds=0.1)


def _one_attempt(storage: ObjectStorage, events: Events) -> None:
    store = Store(storage)
    _commit_steps(store, store.begin_attempt(store.resolve()), range(10, 30, 10), events)


def test_a_good_checkpoint_is_found_after_each_request_of_an_attempt():
    assert _check_every_prefix(_one_attempt, _make_memory_storage) > 25


@pytest.mark.slow
def test_a_good_checkpoint_is_found_after_each_request_of_two_attempts():
    assert _check_every_prefix(_two_attempts, _make_memory_storage) > 120


@pytest.mark.slow
def test_a_good_checkpoint_is_found_after_each_request_to_a_server(s3_url: str):
    count = 0

    def make_storage() -> ObjectStorage:
        nonlocal count
        count += 1
        return ObjectStorage(f"{s3_url}/{count}", retry_seconds=5)

    assert _check_every_prefix(_one_attempt, make_storage) > 25


def _manifest_first(storage: ObjectStorage, events: Events) -> None:
    with pytest.MonkeyPatch.context() as patch:
        put, delayed = ObjectStorage.put, []

        def put_later(self: ObjectStorage, name: str, write: object, on_stage: object = None) -> None:
            put(storage, f"aside/{name}", write, on_stage)  # type: ignore[arg-type]
            delayed.append((name, write))

        put_if_absent = ObjectStorage.put_if_absent

        def create_then_put(self: ObjectStorage, name: str, *arguments: object) -> bool:
            is_created = put_if_absent(self, name, *arguments)  # type: ignore[arg-type]
            if name.endswith(".json") and "/" not in name:
                put(self, *delayed.pop())
            return is_created

        patch.setattr(ObjectStorage, "put", put_later)
        patch.setattr(ObjectStorage, "put_if_absent", create_then_put)
        _one_attempt(storage, events)


def _deletions_not_logged(storage: ObjectStorage, events: Events) -> None:
    with pytest.MonkeyPatch.context() as patch:
        append = commit_log.append

        def append_others(log: object, lines: list, *arguments: object) -> None:
            kept = [event for event in lines if event["event"] != "deleted"]
            if kept:
                append(log, kept, *arguments)  # type: ignore[arg-type]

        patch.setattr(commit_log, "append", append_others)
        store = Store(storage)
        _commit_steps(store, store.begin_attempt(store.resolve()), range(10, 50, 10), events)


@pytest.mark.parametrize("broken", [_manifest_first, _deletions_not_logged])
def test_a_store_that_skips_a_protocol_step_fails_after_some_request(broken: Program):
    with pytest.raises((AssertionError, DamagedError)):
        _check_every_prefix(broken, _make_memory_storage)


@pytest.mark.slow
def test_no_lost_response_changes_what_was_committed():
    """Each request in turn is executed, and its response is lost. The caller sees a success or an OSError."""
    total = _run_to(None, _one_attempt, _make_memory_storage())[1]
    succeeded = 0
    for number in range(1, total + 1):
        storage = _make_memory_storage()
        Requests(storage, lost_response=number)
        events: Events = []
        try:
            _one_attempt(storage, events)
            succeeded += 1
        except OSError:
            pass
        Requests(storage)
        _check(storage, events)
    assert succeeded > 10


def test_the_requests_of_a_commit_are_in_this_order():
    storage = _make_memory_storage()
    store = Store(storage)
    attempt = store.begin_attempt(store.resolve())
    requests = Requests(storage)
    commit_checkpoint(store, 10, attempt=attempt)
    writes = [name for name in requests.names if name in {"put", "complete", "delete"}]
    assert writes == ["put", "complete", "put", "put"]  # claim, checkpoint, manifest, log


class _TakeOver:
    """A fence that succeeds, after which another attempt takes over the prefix and commits."""

    def __init__(self, storage: ObjectStorage, call: int) -> None:
        self._storage, self._call, self._count = storage, call, 0
        self.committed: list[str] = []

    def __call__(self) -> None:
        self._count += 1
        if self._count == self._call:
            store = Store(self._storage)
            attempt = store.begin_attempt(store.resolve())
            self.committed += [commit_checkpoint(store, step, attempt=attempt).name for step in (40, 50)]


@pytest.mark.parametrize("call", [1, 2, 3], ids=["after the claim", "after the upload", "before the manifest"])
def test_an_old_attempt_that_was_suspended_after_its_fence_cannot_commit(call: int):
    storage = _make_memory_storage()
    store = Store(storage)
    attempt = store.begin_attempt(store.resolve())
    commit_checkpoint(store, 30, attempt=attempt)
    take_over = _TakeOver(storage, call)
    with pytest.raises(FolderLostError, match="Another process writes to s3://bucket/run"):
        commit_checkpoint(store, 40, attempt=attempt, fence=take_over)
    resolution = Store(storage).resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.name == take_over.committed[-1]
    assert {checkpoint.name for checkpoint in resolution.older_checkpoints} == {
        "000001-step-30", take_over.committed[0]
    }  # fmt: skip
    assert ([*resolution.bad_checkpoints], [*resolution.lost_names]) == ([], [])


def test_an_attempt_does_not_begin_if_the_old_one_commits_meanwhile(monkeypatch: pytest.MonkeyPatch):
    storage = _make_memory_storage()
    store = Store(storage)
    attempt = store.begin_attempt(store.resolve())
    fingerprint = store_module.fingerprint

    def commit_then_fingerprint(*arguments: Any) -> object:
        commit_checkpoint(store, 40, attempt=attempt)
        return fingerprint(*arguments)

    new = Store(storage)
    resolution = new.resolve()
    monkeypatch.setattr(store_module, "fingerprint", commit_then_fingerprint)
    with pytest.raises(RanksDisagreeError, match="while this attempt began"):
        new.begin_attempt(resolution)
    assert [checkpoint.step for checkpoint in Store(storage).read_checkpoints()] == [40]
