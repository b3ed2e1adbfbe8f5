"""Conformance tests for storages of checkpoints."""

from __future__ import annotations

import copy
import errno
import itertools
import multiprocessing
import pickle
import reprlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from stormproof.checkpoint import Checkpoint, CommitInfo, Lease, Retention, Store
from stormproof.checkpoint.storage import Entry, OutcomeUnknownError, StageCallback, Storage
from stormproof.checkpoint.storage.conditions import check_conditions
from stormproof.errors import FolderLostError, FolderTakenError, StormproofError
from stormproof.testing import storage_processes
from stormproof.testing.storage_processes import KILL_POINTS

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
PROCESS_TIMEOUT_SECONDS = 120.0
_SPAWN = multiprocessing.get_context("spawn")  # some clients of object stores do not survive a fork
_CONTENT = bytes(range(256)) * 400


class StorageSuite:
    """Tests of the promises on which checkpoints rely. They run under pytest.

    Subclass it, name the subclass ``Test…``, and implement :meth:`make_storage`. The tests cover the six operations,
    races between threads and between processes, and processes that are killed in the middle of a write. They also
    interrupt a store of checkpoints at each of its operations. No test can simulate a power failure: whether a write
    that returned survives one is for the author of the storage to show.

    Attributes:
        operation_stride: Distance between the operations of a store that are interrupted, in operations. Set a larger
            value in a subclass if one operation takes more than a millisecond.

    Example:
        >>> from stormproof.checkpoint.storage import PosixStorage
        >>> class TestPosixStorage(StorageSuite):
        ...     def make_storage(self, folder):
        ...         return PosixStorage(folder)
    """

    operation_stride = 1

    def make_storage(self, folder: Path) -> Storage:
        """Returns a storage, which is empty when this is first called with ``folder``.

        Another call with the same folder returns another instance with the same contents, as another process creates
        it. Two folders have different contents.

        Args:
            folder: Existing folder of this test, for the contents or to derive the name of a bucket or a table from.
        """
        raise NotImplementedError

    def test_a_content_is_read_back_whole_and_by_ranges(self, tmp_path: Path) -> None:
        """Checks `put` and `get`."""
        storage = self.make_storage(tmp_path)
        storage.put("a.ckpt", lambda file: [file.write(_CONTENT[:100]), file.write(_CONTENT[100:])])
        storage.put("empty", lambda file: file.write(b""))
        for start, stop in [(0, None), (0, 0), (10, 20), (99_990, None), (10, 10**9), (10**9, None), (5, 5)]:
            _check_equal("a range of a content", b"".join(storage.get("a.ckpt", start, stop)), _CONTENT[start:stop])
        _check_equal("an empty content", storage.read("empty"), b"")
        _check_equal("the content for another instance", self.make_storage(tmp_path).read("a.ckpt"), _CONTENT)

    def test_a_missing_name_is_not_found(self, tmp_path: Path) -> None:
        """Checks the errors of `get`, `stat`, `read` and `read_with_version`."""
        storage = self.make_storage(tmp_path)
        for read in (lambda name: [*storage.get(name)], storage.stat, storage.read, storage.read_with_version):
            with _expect(FileNotFoundError, "reading a name that does not exist"):
                read("missing")
        _check_equal("the names in a missing folder", storage.list("missing"), [])
        storage.delete(["missing", "missing/a"])

    def test_an_error_names_its_place(self, tmp_path: Path) -> None:
        """Checks `strerror` and `filename`, with which messages are made."""
        storage = self.make_storage(tmp_path)
        with _expect(FileNotFoundError, "reading a name that does not exist") as error:
            storage.stat("missing")
        assert error[0].strerror, "the error of a missing name must have a strerror"
        assert str(error[0].filename).startswith(storage.location), "its filename must begin with the location"
        assert storage.locate("a").startswith(storage.location), "locate() must return a path or URL in the location"

    def test_the_stages_of_a_write_come_in_order_and_before_the_name(self, tmp_path: Path) -> None:
        """Checks `on_stage`: "written" and "synced" before the name appears, "renamed" after it."""
        storage = self.make_storage(tmp_path)
        for name, write in _writers(storage):
            seen: list[tuple[str, bool]] = []
            write(lambda stage, name=name, seen=seen: seen.append((stage, name in _names(storage))))
            expected = [("written", False), ("synced", False), ("renamed", True)]
            _check_equal(f"the stages of {name} and whether the name was listed", seen, expected)

    def test_an_exception_before_the_name_appears_cancels_a_write(self, tmp_path: Path) -> None:
        """Checks that a fence can cancel a write at its stages, and an error of the content as well."""
        storage = self.make_storage(tmp_path)
        for stage, (name, write) in itertools.product(["written", "synced"], _writers(storage)):
            with _expect(_CancelledError, f"{name} must pass on the exception of the stage {stage!r}"):
                write(lambda reached, stage=stage: _cancel() if reached == stage else None)

        def write_half(file: BinaryIO) -> None:
            file.write(_CONTENT)
            _cancel()

        with _expect(_CancelledError, "put must pass on the exception of the function that writes"):
            storage.put("a", write_half)
        _check_equal("the names after cancelled writes", _names(storage), set())
        storage.put("a", lambda file: file.write(b"1"))
        _check_equal("the content of a write after cancelled writes", storage.read("a"), b"1")

    def test_only_the_first_create_succeeds(self, tmp_path: Path) -> None:
        """Checks `put_if_absent`."""
        storage, other = self.make_storage(tmp_path), self.make_storage(tmp_path)
        _check_equal("the result of the first put_if_absent", storage.put_if_absent("a", b"first"), True)
        for instance in (storage, other):
            _check_equal("the result of a second put_if_absent", instance.put_if_absent("a", b"second"), False)
        _check_equal("the content", other.read("a"), b"first")
        storage.put("b", lambda file: file.write(b"first"))
        _check_equal("the result of put_if_absent after put", other.put_if_absent("b", b"second"), False)

    def test_a_swap_needs_the_current_version(self, tmp_path: Path) -> None:
        """Checks `compare_and_swap`."""
        storage, other = self.make_storage(tmp_path), self.make_storage(tmp_path)
        first = storage.compare_and_swap("a", b"1", None)
        assert first is not None, "a name that does not exist could not be created with the version None"
        _check_equal(
            "a swap with the version None of a name that exists", other.compare_and_swap("a", b"x", None), None
        )
        second = other.compare_and_swap("a", b"2", first)
        assert second is not None, "a swap with the current version failed"
        _check_equal("a swap with an earlier version", storage.compare_and_swap("a", b"x", first), None)
        _check_equal("a swap of a missing name", storage.compare_and_swap("missing", b"x", first), None)
        _check_equal("content and version", storage.read_with_version("a"), (b"2", second))
        _check_equal("the listed version", [entry.version for entry in _entries(storage)], [second])
        _check_equal("the version of stat", storage.stat("a").version, second)
        storage.delete(["a"])
        _check_equal("a swap of a deleted name", storage.compare_and_swap("a", b"x", second), None)

    def test_a_version_never_returns(self, tmp_path: Path) -> None:
        """Checks that a version differs from all earlier ones, although all contents have the same size."""
        storage = self.make_storage(tmp_path)
        versions: list[str | None] = [None]
        for number in range(40):
            versions.append(storage.compare_and_swap("a", b"%02d" % number, versions[-1]))
        assert None not in versions[1:], "a swap with the version that the last swap returned failed"
        _check_equal("the number of different versions", len({*versions}), len(versions))
        storage.delete(["a"])
        versions.append(storage.compare_and_swap("a", b"99", None))
        assert versions[-1] not in versions[:-1], "a name that was deleted and created again has an earlier version"

    def test_a_storage_supports_conditional_writes(self, tmp_path: Path) -> None:
        """Checks what each run checks when it starts."""
        storage = self.make_storage(tmp_path)
        check_conditions(storage)
        _check_equal("the names that the check left", _names(storage), set())

    def test_names_are_listed_by_folder(self, tmp_path: Path) -> None:
        """Checks the entries of `list` and `stat`."""
        storage = self.make_storage(tmp_path)
        storage.put("a.ckpt", lambda file: file.write(b"123"))
        storage.put_if_absent("log/1.jsonl", b"12")
        storage.put_if_absent("log/10.jsonl", b"")
        storage.compare_and_swap("logs", b"1", None)
        expected = {("a.ckpt", 3, False), ("log", 0, True), ("logs", 1, False)}
        _check_equal("names, sizes and folders", {*map(_summarize, _entries(storage))}, expected)
        expected = {("1.jsonl", 2, False), ("10.jsonl", 0, False)}
        _check_equal("the names in a folder", {*map(_summarize, _entries(storage, "log"))}, expected)
        _check_equal("the entry of a name in a folder", _summarize(storage.stat("log/1.jsonl")), ("1.jsonl", 2, False))
        assert all(entry.is_regular for entry in storage.list("log")), "a content must be a regular entry"

    def test_times_of_modification_are_those_of_one_clock(self, tmp_path: Path) -> None:
        """Checks `Entry.modified`, by which a lease of another machine expires."""
        storage = self.make_storage(tmp_path)
        for name in "abc":
            storage.compare_and_swap(name, b"1", None)
        storage.compare_and_swap("a", b"2", storage.stat("a").version)
        times = {entry.name: entry.modified for entry in storage.list()}
        assert times["a"] >= times["c"] >= times["b"], f"later writes must not have earlier times, got {times}"
        assert times["a"] - times["b"] < PROCESS_TIMEOUT_SECONDS, f"times must be in seconds, got {times}"

    def test_names_are_deleted_in_order(self, tmp_path: Path) -> None:
        """Checks `delete`. A missing name is no error, and neither is a folder."""
        storage = self.make_storage(tmp_path)
        for name in ("a", "b", "folder/c", "folder/d"):
            storage.put_if_absent(name, b"1")
        left: list[set[str]] = []

        def names() -> Iterator[str]:
            for name in ("a", "missing", "folder/c", "folder", "b"):
                yield name
                left.append(_names(storage))

        storage.delete(names())
        expected = [{"b", "folder"}] * 4 + [{"folder"}]
        _check_equal("the names after each deletion", left, expected)
        _check_equal("the names left in the folder", _names(storage, "folder"), {"d"})
        storage.delete(["folder/d", "folder"])
        _check_equal("the names at the end", _names(storage), set())

    def test_copies_have_the_same_contents(self, tmp_path: Path) -> None:
        """Checks `copy.deepcopy`, `pickle` and `location`."""
        (tmp_path / "1").mkdir()
        (tmp_path / "2").mkdir()
        storage, foreign = self.make_storage(tmp_path / "1"), self.make_storage(tmp_path / "2")
        copies = [self.make_storage(tmp_path / "1"), copy.deepcopy(storage), pickle.loads(pickle.dumps(storage))]  # noqa: S301 (its own)
        storage.put_if_absent("a", b"1")
        for instance in copies:
            _check_equal("the content for a copy", instance.read("a"), b"1")
            _check_equal("the location of a copy", instance.location, storage.location)
        assert foreign.location != storage.location, "storages with different contents must have different locations"
        _check_equal("the names in another storage", foreign.list(), [])

    def test_one_of_many_writers_at_the_same_time_succeeds(self, tmp_path: Path) -> None:
        """Checks races between threads, which share an instance or have one each."""
        storages = [self.make_storage(tmp_path), self.make_storage(tmp_path)] * 2
        for number in range(10):
            self._check_race(storages, f"created {number}", None, [b"%d by %d" % (number, index) for index in range(4)])
        for number in range(10):
            version = storages[0].stat("swapped").version if number else None
            self._check_race(storages, "swapped", version, [b"%d by %d" % (number, index) for index in range(4)])

    @staticmethod
    def _check_race(storages: list[Storage], name: str, version: str | None, contents: list[bytes]) -> None:
        """Checks that one of four threads writes ``name``."""
        barrier = threading.Barrier(4)

        def write(index: int) -> bool:
            barrier.wait()
            if name == "swapped":
                return storages[index].compare_and_swap(name, contents[index], version) is not None
            return storages[index].put_if_absent(name, contents[index])

        with ThreadPoolExecutor(4) as pool:
            winners = [index for index, has_won in enumerate(pool.map(write, range(4))) if has_won]
        _check_equal(f"the number of threads that wrote {name!r}", len(winners), 1)
        _check_equal(f"the content of {name!r}", storages[0].read(name), contents[winners[0]])

    def test_a_reader_sees_whole_contents_while_they_are_swapped(self, tmp_path: Path) -> None:
        """Checks that content and version belong together."""
        storage, reader = self.make_storage(tmp_path), self.make_storage(tmp_path)
        contents = [b"%d" % number * (1 + 500 * (number % 3)) for number in range(30)]
        written = {storage.compare_and_swap("a", contents[0], None): contents[0]}
        read: list[tuple[bytes, str]] = []
        has_ended = threading.Event()

        def read_all() -> None:
            while not has_ended.is_set():
                read.append(reader.read_with_version("a"))

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read_all)
            for content in contents[1:]:
                written[storage.compare_and_swap("a", content, [*written][-1])] = content
            has_ended.set()
            reading.result()
        for content, version in read:
            _check_equal("the content of a version", content, written.get(version))

    def test_processes_lose_no_update(self, tmp_path: Path) -> None:
        """Checks `compare_and_swap` and `put_if_absent` in three processes."""
        storage, names = self.make_storage(tmp_path), [f"{number}" for number in range(10)]
        storage.compare_and_swap("counter", b"0", None)
        barrier = _SPAWN.Barrier(3, timeout=PROCESS_TIMEOUT_SECONDS)
        processes = [_Process(storage_processes.write_with_others, storage, names, barrier) for _ in range(3)]
        created = [process.receive() for process in processes]
        _check_equal("the exit codes of the processes", [process.wait() for process in processes], [0] * 3)
        _check_equal("the counter after 30 increments", int(storage.read("counter").split()[0]), 30)
        _check_equal("the names that a process created", sorted(itertools.chain(*created)), sorted(names))

    def test_a_killed_process_leaves_no_part_of_a_write(self, tmp_path: Path) -> None:
        """Kills processes in the middle of a write. The name appears whole or not at all, and can be written again."""
        storage = self.make_storage(tmp_path)
        put, create = storage_processes.put_until_killed, storage_processes.create_until_killed
        writes = [("put", put, point) for point in KILL_POINTS]
        writes += [("put_if_absent", create, point) for point in KILL_POINTS[1:]]
        for operation, program, point in writes:
            name = f"{operation} {point}"
            _Process(program, storage, name, _CONTENT, point).wait()
            is_expected = point == "renamed"
            _check_equal(f"whether {name!r} exists after a kill", name in _names(storage), is_expected)
            if is_expected:
                _check_equal(f"the content of {name!r}", storage.read(name), _CONTENT)
            storage.put(name, lambda file: file.write(b"again"))
            _check_equal(f"the content of {name!r} after the next write", storage.read(name), b"again")

    def test_a_killed_process_leaves_the_last_swap_and_no_lock(self, tmp_path: Path) -> None:
        """Kills a process that swaps in a loop."""
        storage = self.make_storage(tmp_path)
        process = _Process(storage_processes.swap_forever, storage, "a")
        last = max(process.receive() for _ in range(20))
        last = max([last, *process.kill()])
        content, version = storage.read_with_version("a")
        assert int(content.split()[0]) in {last, last + 1}, f"swap {last} has returned, but {content!r} is stored"
        assert storage.compare_and_swap("a", b"next", version) is not None, "a killed process must not keep a lock"

    def test_a_lease_has_one_owner(self, tmp_path: Path) -> None:
        """Checks the right to write, as a run acquires it."""
        storage, other = self.make_storage(tmp_path), self.make_storage(tmp_path)
        lease = Lease(storage)
        lease.check()
        with _expect(FolderTakenError, "acquiring a lease that another process owns"):
            Lease(other)
        lease.release()
        second = Lease(other)
        with _expect(FolderLostError, "checking a lease that another process took over"):
            lease.check()
        second.check()
        second.release()

    def test_an_attempt_that_was_taken_over_cannot_commit(self, tmp_path: Path) -> None:
        """Suspends an attempt after each check of its lease, while another one begins and commits.

        In a folder, only the lease excludes this.
        """
        for call in (1, 2, 3) if self.make_storage(tmp_path).folder is None else ():
            (tmp_path / f"{call}").mkdir()
            storage = self.make_storage(tmp_path / f"{call}")
            store, committed, calls = Store(storage), list[str](), itertools.count(1)
            attempt = store.begin_attempt(store.resolve())

            def take_over(storage: Storage = storage, call: int = call, calls: Iterator[int] = calls) -> None:
                if next(calls) == call:
                    _train(storage, committed)  # noqa: B023

            with _expect(FolderLostError, f"committing after another attempt began at check {call} of the lease"):
                _commit(store, 1, attempt, take_over)
            chosen = Store(storage).latest_checkpoint()
            _check_equal("the newest checkpoint", chosen and chosen.name, committed[-1])

    def test_a_checkpoint_is_found_after_a_kill_at_each_operation(self, tmp_path: Path) -> None:
        """Ends an attempt at each operation of the storage. Every checkpoint that was committed is found, and no other.

        The next attempt cleans up and commits.
        """
        self._check_each_operation(tmp_path, _KilledError())

    def test_a_checkpoint_is_found_after_an_error_of_each_operation(self, tmp_path: Path) -> None:
        """As above, if an operation fails once, and does nothing."""
        self._check_each_operation(tmp_path, OSError(errno.EIO, "the connection failed", "storage"))

    def test_a_checkpoint_is_found_after_a_lost_response_of_each_write(self, tmp_path: Path) -> None:
        """As above, if a write succeeds, and its caller does not learn this."""
        self._check_each_operation(tmp_path, OutcomeUnknownError(errno.EIO, "the response was lost", "storage"))

    def _check_each_operation(self, folder: Path, failure: BaseException) -> None:
        for number in itertools.count(1, self.operation_stride):
            (folder / f"{number}").mkdir()
            storage = self.make_storage(folder / f"{number}")
            committed: list[str] = []
            failing_storage = _FailingStorage(storage, number, failure)
            with suppress(_KilledError, OSError, StormproofError):
                _train(failing_storage, committed)
            try:
                _check_resume(self.make_storage(folder / f"{number}"), committed, f"operation {number}")
            except StormproofError as error:
                raise AssertionError(f"after operation {number}, another attempt fails: {error}") from error
            if failing_storage.count < number:
                return


class _CancelledError(Exception):
    """Cancels a write."""


class _KilledError(BaseException):
    """The process ends. No operation follows."""


class _FailingStorage(Storage):
    """Fails at one operation of another storage."""

    def __init__(self, storage: Storage, number: int, failure: BaseException) -> None:
        self._storage, self._number, self._failure = storage, number, failure
        self.count = 0

    @property
    def folder(self) -> Path | None:
        return self._storage.folder

    @property
    def location(self) -> str:
        return self._storage.location

    def put(self, name: str, write: Callable[[BinaryIO], object], on_stage: StageCallback | None = None) -> None:
        self._write(partial(self._storage.put, name, write, on_stage))

    def put_if_absent(self, name: str, content: bytes, on_stage: StageCallback | None = None) -> bool:
        return self._write(partial(self._storage.put_if_absent, name, content, on_stage))

    def compare_and_swap(self, name: str, content: bytes, version: str | None) -> str | None:
        return self._write(partial(self._storage.compare_and_swap, name, content, version))

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._write(partial(self._storage.delete, [name]))

    def get(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return self._read(partial(self._storage.get, name, start, stop))

    def list(self, folder: str = "") -> list[Entry]:
        return self._read(partial(self._storage.list, folder))

    def stat(self, name: str) -> Entry:
        return self._read(partial(self._storage.stat, name))

    def read(self, name: str) -> bytes:
        return self._read(partial(self._storage.read, name))

    def read_with_version(self, name: str) -> tuple[bytes, str]:
        return self._read(partial(self._storage.read_with_version, name))

    def _read(self, operation: Callable[[], T]) -> T:
        return operation() if isinstance(self._failure, OutcomeUnknownError) else self._write(operation)

    def _write(self, operation: Callable[[], T]) -> T:
        self.count += 1
        is_failing = self.count == self._number
        is_killed = isinstance(self._failure, _KilledError) and self.count > self._number
        if is_killed or (is_failing and not isinstance(self._failure, OutcomeUnknownError)):
            raise self._failure
        result = operation()
        if is_failing:
            raise self._failure
        return result


class _Process:
    """A process that runs ``program`` with a copy of ``storage``."""

    def __init__(self, program: Callable[..., object], storage: Storage, *arguments: object) -> None:
        self._receiver, sender = _SPAWN.Pipe(duplex=False)
        self._process = _SPAWN.Process(target=program, args=(storage, *arguments, sender))
        self._process.start()
        sender.close()

    def receive(self) -> Any:
        assert self._receiver.poll(PROCESS_TIMEOUT_SECONDS), "a process that uses the storage sent nothing"
        return self._receiver.recv()

    def wait(self) -> int | None:
        self._process.join(PROCESS_TIMEOUT_SECONDS)
        return self._process.exitcode

    def kill(self) -> Iterator[Any]:
        """Kills the process. Yields the values that it has sent."""
        self._process.kill()
        with suppress(EOFError, OSError):
            while True:
                yield self._receiver.recv()


def _train(storage: Storage, committed: list[str]) -> None:
    """Begins an attempt, commits three checkpoints, and deletes the first. Adds the names to ``committed``."""
    store = Store(storage)
    attempt = store.begin_attempt(store.resolve())
    for step in (10, 20, 30):
        committed.append(_commit(store, step, attempt).name)
        store.apply_retention(Retention())


def _commit(store: Store, step: int, attempt: int, fence: Callable[[], object] | None = None) -> Checkpoint:
    state = {"state_dict": {"weight": torch.full((4,), step)}, "global_step": step}
    info = CommitInfo(step=step, epoch=0, world_size=1)
    return store.commit(lambda file: torch.save(state, file), info, attempt=attempt, fence=fence)


def _check_resume(storage: Storage, committed: list[str], moment: str) -> None:
    """Checks what an attempt finds after one that committed ``committed`` and was interrupted."""
    store = Store(storage)
    resolution = store.resolve(verify_all=True)
    chosen = store.choose_checkpoint(resolution)
    next_name = f"{len(committed) + 1:06d}-step-{10 * (len(committed) + 1)}"  # its commit may have succeeded
    allowed = {committed[-1] if committed else None, next_name}
    assert (chosen and chosen.name) in allowed, f"after {moment}: {chosen and chosen.name} was chosen, not {allowed}"
    problems = [resolution.bad_checkpoints, resolution.lost_names, resolution.log_problems]
    assert not any(problems), f"after {moment}, the store has damaged or lost checkpoints: {problems}"
    new = _commit(store, 1000, store.begin_attempt(resolution))
    store.apply_retention(Retention())
    second = store.resolve(verify_all=True)
    _check_equal(f"the newest checkpoint after {moment} and another attempt", second.chosen_checkpoint, new)
    problems = [second.bad_checkpoints, second.lost_names, second.leftover_files]
    assert not any(problems), f"after {moment} and another attempt, the store has leftovers: {problems}"


def _writers(storage: Storage) -> list[tuple[str, Callable[[StageCallback], object]]]:
    """Returns the two operations with stages, and the names that they write."""
    return [
        ("put", lambda on_stage: storage.put("put", lambda file: file.write(b"1"), on_stage)),
        ("put_if_absent", lambda on_stage: storage.put_if_absent("put_if_absent", b"1", on_stage)),
    ]


def _entries(storage: Storage, folder: str = "") -> list[Entry]:
    """Returns the entries without those of the storage itself."""
    return [entry for entry in storage.list(folder) if not entry.name.startswith(".")]


def _names(storage: Storage, folder: str = "") -> set[str]:
    return {entry.name for entry in _entries(storage, folder)}


def _summarize(entry: Entry) -> tuple[str, int, bool]:
    return entry.name, entry.size, entry.is_folder


def _cancel() -> None:
    raise _CancelledError


@contextmanager
def _expect(error_type: type[E], action: str) -> Generator[list[E]]:
    """Checks that the block raises an error, and adds it to the list."""
    errors = list[E]()
    try:
        yield errors
    except error_type as error:
        errors.append(error)
    assert errors, f"{action}: expected {error_type.__name__}, but nothing was raised"


def _check_equal(what: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise AssertionError(f"{what}: expected {reprlib.repr(expected)}, got {reprlib.repr(actual)}")
