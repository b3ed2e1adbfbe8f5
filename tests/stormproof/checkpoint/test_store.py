import errno
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stormproof.checkpoint import COMMIT_POINTS, Lease, Retention, Store, observe_fault_points
from stormproof.checkpoint.hashing import HashingFile
from stormproof.errors import FolderLostError
from tests.support.checkpoint_files import commit_checkpoint, file_names, make_state, make_store


@pytest.mark.parametrize("address", ["hdfs://host:9000/run", "file:///tmp/x", Path("s3://bucket/run")])
def test_an_unsupported_url_is_rejected(address: str | Path):
    with pytest.raises(ValueError, match="is not the URL of a supported object store"):
        Store(address)


def test_what_was_committed_is_what_torch_loads_with_its_metadata(tmp_path: Path):
    store = Store(tmp_path / "new" / "checkpoints")
    attempt = store.begin_attempt(store.resolve())
    facts = {"score": 0.5, "identity": "1f", "run": "mine", "healthy": True}
    result = commit_checkpoint(store, 120, epoch=3, world_size=2, attempt=attempt, **facts)
    assert store.read_checkpoints() == [result]
    loaded = torch.load(result.path, weights_only=True)
    assert torch.equal(loaded["state_dict"]["weight"], make_state(120)["state_dict"]["weight"])
    assert (result.step, result.epoch, result.world_size, result.attempt, result.score) == (120, 3, 2, 1, 0.5)
    assert (result.identity, result.run, result.healthy, result.finite, result.adopted) == (
        "1f",
        "mine",
        True,
        True,
        False,
    )
    assert (
        result.versions["torch"] == torch.__version__.partition("+")[0] or result.versions["torch"] == torch.__version__
    )
    assert file_names(store.folder) == {"000001-step-120.ckpt", "000001-step-120.json", "commits.log"}


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf"), None])
def test_a_score_that_is_not_finite_counts_as_none(score: float | None, tmp_path: Path):
    assert commit_checkpoint(make_store(tmp_path, []), 10, score=score).score is None


def test_a_commit_passes_its_points_in_order(tmp_path: Path):
    store = make_store(tmp_path, [])
    points: list[str] = []
    with observe_fault_points(points.append):
        commit_checkpoint(store, 10)
    assert tuple(points) == COMMIT_POINTS


def test_the_temporary_folder_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    elsewhere = tmp_path / "no such folder"
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(elsewhere))
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    with pytest.raises(OSError, match="no such folder"):
        tempfile.mkstemp()
    store = make_store(tmp_path / "checkpoints")
    store.apply_retention(Retention())
    latest = store.latest_checkpoint()
    assert latest is not None
    assert latest.step == 30


class _FullDisk:
    """Takes so many bytes and no more."""

    def __init__(self, file: object, left: int) -> None:
        self._file, self._left = file, left

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        self._left -= len(view)
        if self._left < 0:
            self._file.write(view[: self._left])  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(view)  # type: ignore[attr-defined]

    def flush(self) -> None:
        self._file.flush()  # type: ignore[attr-defined]


@pytest.mark.parametrize("room", [0, 1, 500, 1500])
def test_a_disk_that_fills_up_leaves_the_previous_one_and_no_litter(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = make_store(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        full = lambda file, begun: HashingFile(_FullDisk(file, room), begun)  # noqa: E731
        patch.setattr("stormproof.checkpoint.hashing.HashingFile", full)
        with pytest.raises(OSError, match="No space left"):
            commit_checkpoint(store, 40)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    latest = store.latest_checkpoint()
    assert latest is not None
    assert latest.step == 30
    assert commit_checkpoint(store, 40).name == "000004-step-40"


SMALL = """
import resource, signal, sys, torch
from stormproof.checkpoint import CommitInfo, Store

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
store = Store(sys.argv[1])
try:
    info = CommitInfo(step=40, epoch=0, world_size=1)
    store.commit(lambda file: torch.save({"w": torch.zeros(100_000)}, file), info, attempt=1)
except Exception as error:
    print(type(error).__name__)
print(store.latest_checkpoint().step)
"""


@pytest.mark.slow
def test_a_file_that_may_grow_no_further_leaves_the_previous_one_and_no_litter(tmp_path: Path):
    store = make_store(tmp_path)
    before = file_names(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", SMALL, str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert result.stdout.split() == ["OSError", "30"], result.stdout + result.stderr
    assert file_names(tmp_path) == before
    assert store.latest_checkpoint() is not None


class _OrderedError(Exception):
    pass


def _fail_at(point: str) -> Callable[[str], None]:
    def observer(reached: str) -> None:
        if reached == point:
            raise _OrderedError

    return observer


@pytest.mark.parametrize("point", COMMIT_POINTS)
def test_a_commit_that_fails_anywhere_is_whole_or_leaves_nothing(point: str, tmp_path: Path):
    store = make_store(tmp_path)
    before = file_names(tmp_path)
    with observe_fault_points(_fail_at(point)), pytest.raises(_OrderedError):
        commit_checkpoint(store, 40)
    committed = COMMIT_POINTS.index(point) >= COMMIT_POINTS.index("manifest renamed")
    assert file_names(tmp_path) - before == ({"000004-step-40.ckpt", "000004-step-40.json"} if committed else set())
    resolution = store.resolve(verify_all=True)
    assert resolution.chosen_checkpoint is not None
    assert resolution.chosen_checkpoint.step == (40 if committed else 30)
    assert (list(resolution.bad_checkpoints), list(resolution.lost_names), list(resolution.leftover_files)) == (
        [],
        [],
        [],
    )
    store.begin_attempt(resolution)
    assert commit_checkpoint(store, 50).name == ("000005-step-50" if committed else "000004-step-50")
    assert list(store.resolve(verify_all=True).lost_names) == []


@pytest.mark.parametrize("asked", [1, 2], ids=["before the checkpoint's rename", "before the manifest's"])
def test_a_fence_ends_a_commit_and_leaves_nothing(asked: int, tmp_path: Path):
    store = make_store(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = 0

    def fence() -> None:
        nonlocal calls
        calls += 1
        if calls == asked:
            raise FolderLostError("taken over")

    with pytest.raises(FolderLostError):
        commit_checkpoint(store, 40, fence=fence)
    assert calls == asked
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("at", COMMIT_POINTS[1:6])
def test_an_old_attempt_that_wakes_up_harms_no_commit_of_the_new_one(at: str, tmp_path: Path):
    """The new attempt begins, and commits the same step, while the old one stands still in its commit."""
    store, old = make_store(tmp_path), Lease(tmp_path)
    new: list[Lease] = []

    def taken_over(point: str) -> None:
        if point == at and not new:
            (tmp_path / "lease.json").unlink()
            new.append(Lease(tmp_path))
            new_store = Store(tmp_path)
            number = new_store.begin_attempt(new_store.resolve())
            assert commit_checkpoint(new_store, 40, attempt=number, fence=new[0].check).sequence > 3

    try:
        with observe_fault_points(taken_over), pytest.raises(FolderLostError):
            commit_checkpoint(store, 40, fence=old.check)
        resolution = store.resolve(verify_all=True)
        assert resolution.chosen_checkpoint is not None
        assert (resolution.chosen_checkpoint.step, resolution.chosen_checkpoint.attempt) == (40, 2)
        assert (list(resolution.bad_checkpoints), list(resolution.leftover_files), list(resolution.lost_names)) == (
            [],
            [],
            [],
        )
    finally:
        old.release()
        new[0].release()


def test_an_old_attempt_does_not_remove_a_file_that_the_new_one_is_committing(tmp_path: Path):
    """Both had come to the same name, and the new one's file is there, but not its manifest yet."""
    store = make_store(tmp_path)
    foreign_file = tmp_path / "000004-step-40.ckpt"

    def lost() -> None:
        foreign_file.write_bytes(b"the new attempt's")
        raise FolderLostError("taken over")

    with pytest.raises(FolderLostError):
        commit_checkpoint(store, 40, fence=lost)
    assert foreign_file.read_bytes() == b"the new attempt's"


@pytest.mark.parametrize("how", ["deleted", "quarantined", "lost", "left over"])
def test_a_name_is_never_used_again(how: str, tmp_path: Path):
    store = make_store(tmp_path)
    newest = store.read_checkpoints()[-1]
    if how == "left over":
        newest = commit_checkpoint(store, 40)
        newest.manifest_path.unlink()
        log = (tmp_path / "commits.log").read_bytes().splitlines(keepends=True)
        (tmp_path / "commits.log").write_bytes(b"".join(log[:-1]))
    elif how == "quarantined":
        os.truncate(newest.path, 5)
    else:
        if how == "deleted":
            store._append({"event": "deleted", "name": newest.name})
        newest.path.unlink()
        newest.manifest_path.unlink()
    store.begin_attempt(store.resolve())
    assert newest.name not in {path.stem for path in tmp_path.iterdir()}
    assert commit_checkpoint(store, newest.step).sequence == newest.sequence + 1


def test_attempts_are_numbered_and_say_where_they_went_on_from(tmp_path: Path):
    store = make_store(tmp_path)
    assert store.begin_attempt(store.resolve()) == 2
    assert store.begin_attempt(store.resolve(), step=20) == 3
    assert [(attempt.number, attempt.step) for attempt in store.read_attempts()] == [(1, 0), (2, 30), (3, 20)]
    times = [attempt.time for attempt in store.read_attempts()]
    assert times == sorted(times)


def test_attempts_are_numbered_on_where_the_log_is_lost(tmp_path: Path):
    store = make_store(tmp_path)
    commit_checkpoint(store, 40, attempt=7)
    (tmp_path / "commits.log").unlink()
    assert store.begin_attempt(store.resolve()) == 8
    for step in (10, 20):
        assert commit_checkpoint(store, step).sequence > 4


def test_a_folder_is_read_while_another_thread_commits_and_prunes(tmp_path: Path):
    store = make_store(tmp_path)
    finished = threading.Event()
    problems: list[object] = []
    rounds = 0

    def read() -> None:
        nonlocal rounds
        while not finished.is_set():
            resolution = Store(tmp_path).resolve()
            rounds += 1
            if resolution.lost_names or resolution.bad_checkpoints or resolution.log_problems:
                problems.append(resolution)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for step in range(40, 440, 10):
            commit_checkpoint(store, step)
            store.apply_retention(Retention())
    finally:
        finished.set()
        reader.join()
    assert rounds > 3
    assert problems == []
