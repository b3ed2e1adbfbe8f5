import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stormproof.checkpoint import CommitInfo, Lease, Store
from stormproof.checkpoint.folder_ownership import FolderOwnership, is_owner_visible, verify_shared_store
from stormproof.errors import FolderLostError, FolderTakenError, RanksDisagreeError


@pytest.fixture
def take(tmp_path: Path):
    """Takes the folder; what the test did not give back is given back at its end."""
    holds: list[FolderOwnership] = []

    def take() -> FolderOwnership:
        store = Store(tmp_path / "checkpoints")
        holds.append(FolderOwnership(store, store.resolve()))
        return holds[-1]

    yield take
    for hold in holds:
        if is_owner_visible(Store(tmp_path / "checkpoints"), hold.token, timeout_seconds=0):
            hold.release()


Take = Callable[[], FolderOwnership]


def test_attempts_are_numbered_and_each_knows_how_far_the_one_before_came(take: Take):
    first = take()
    assert (first.attempt, first.previous_progress) == (1, None)
    first.record_progress(7)
    first.release()
    second = take()
    assert second.attempt == 2
    assert second.previous_progress is not None
    assert second.previous_progress.step == 7
    assert first.token != second.token


def test_the_folder_is_made_and_another_cannot_take_it_meanwhile(take: Take, tmp_path: Path):
    take()
    with pytest.raises(FolderTakenError, match="is in use by process"):
        take()
    assert (tmp_path / "checkpoints").is_dir()


def test_one_that_was_given_back_can_be_taken_again(take: Take, tmp_path: Path):
    take().release()
    assert not Lease.is_active(tmp_path / "checkpoints")
    take().release()


def test_the_one_that_was_taken_over_is_told_before_it_writes(take: Take, tmp_path: Path):
    hold = take()
    hold.fence()
    lease = tmp_path / "checkpoints" / "lease.json"
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "token": "of another"}))
    with pytest.raises(FolderLostError, match="stops writing to the folder"):
        hold.fence()
    hold.release()
    assert json.loads(lease.read_text())["token"] == "of another"  # which is not ours to remove
    lease.unlink()


def test_a_folder_that_changed_since_it_was_resolved_is_not_taken_and_not_kept(tmp_path: Path):
    store = Store(tmp_path / "checkpoints")
    old = store.resolve()
    hold = FolderOwnership(store, old)
    info = CommitInfo(step=1, epoch=0, world_size=1)
    store.commit(lambda file: torch.save({}, file), info, attempt=hold.attempt)
    hold.release()
    with pytest.raises(RanksDisagreeError, match="while this attempt began"):
        FolderOwnership(store, old)
    assert not Lease.is_active(store.folder)


def test_the_held_folder_is_seen_by_its_token_and_another_is_not(take: Take, tmp_path: Path):
    hold = take()
    folder = tmp_path / "checkpoints"
    assert is_owner_visible(Store(folder), hold.token, timeout_seconds=0)
    assert not is_owner_visible(Store(folder), "of another", timeout_seconds=0)
    assert not is_owner_visible(Store(tmp_path / "elsewhere"), hold.token, timeout_seconds=0)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lease.json").write_text("{half")
    assert not is_owner_visible(Store(tmp_path / "elsewhere"), hold.token, timeout_seconds=0)


def test_a_lease_that_shows_late_is_waited_for(take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a network file system; the clock is the test's."""
    hold = take()
    late = tmp_path / "late"
    late.mkdir()
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            (late / "lease.json").write_bytes((tmp_path / "checkpoints" / "lease.json").read_bytes())

    monkeypatch.setattr("stormproof.checkpoint.folder_ownership.time.sleep", sleep)
    assert is_owner_visible(Store(late), hold.token)
    assert len(waited) == 3


def test_a_rank_that_looks_elsewhere_is_named(take: Take, tmp_path: Path):
    hold = take()
    verify_shared_store(Store(tmp_path / "checkpoints"), hold.token, timeout_seconds=0)
    with pytest.raises(RanksDisagreeError, match=rf"rank 0 writes to \(rank 0: {tmp_path}/elsewhere\)"):
        verify_shared_store(Store(tmp_path / "elsewhere"), hold.token, timeout_seconds=0)
