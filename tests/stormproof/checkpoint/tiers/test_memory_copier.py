"""The tier decides when to copy the state to memory, and does not stop training if it cannot."""

import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stormproof.checkpoint import Attempt, CommitInfo
from stormproof.checkpoint.tiers import memory_copier, memory_folder
from stormproof.checkpoint.tiers.memory_copier import MemoryCopier
from stormproof.checkpoint.tiers.memory_folder import MemoryFolder, name_folder

pytestmark = pytest.mark.usefixtures("memory")


def make_tier() -> tuple[MemoryCopier, MemoryFolder]:
    folder = MemoryFolder(name_folder("/runs/mine", Attempt(1, 0, 1.0)))
    folder.prepare()
    return MemoryCopier(folder, 1, None), folder


def save(tier: MemoryCopier, step: int, weight: torch.Tensor | None = None, *, has_problem: bool = False) -> None:
    checkpoint = {"state_dict": {"weight": torch.full((2,), float(step)) if weight is None else weight}}
    tier.save(checkpoint, CommitInfo(step=step, epoch=0, world_size=1), lambda _: has_problem)
    assert tier._job is not None
    tier._job.join(20)


def find_step(folder: MemoryFolder) -> int | None:
    newest = folder.find_newest()
    return None if newest is None else newest.step


@pytest.mark.parametrize(("pause_seconds", "write_seconds", "interval"), [(0.5, 0.0, 50), (0.0, 3.0, 30)])
def test_a_copy_is_due_after_100_pauses_and_10_writes_of_the_last_one(
    pause_seconds: float, write_seconds: float, interval: float
):
    tier, _ = make_tier()
    save(tier, 5)
    tier.record_pause(60.0)  # allocates the buffers
    tier._write_seconds = write_seconds
    tier.record_pause(pause_seconds)
    now = time.monotonic()
    assert not tier.is_due(now + interval - 1)
    assert tier.is_due(now + interval + 1)


def test_the_pause_of_the_first_copy_does_not_delay_the_second_one():
    tier, _ = make_tier()
    save(tier, 5)
    tier._write_seconds = 0.0
    tier.record_pause(60.0)
    assert tier.is_due(time.monotonic() + 2)


def test_a_copy_that_the_other_node_does_not_delete_is_an_error():
    _, folder = make_tier()
    peer: Any = SimpleNamespace(send=lambda *_: True, clear=lambda: False)
    tier = MemoryCopier(folder, 1, peer)
    save(tier, 5)
    with pytest.raises(OSError, match="copies in memory could not be deleted: the other node did not reply"):
        tier.clear()
    assert find_step(folder) is None


def test_a_copy_that_is_still_being_written_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_copier, "CLEAR_TIMEOUT_SECONDS", 0.1)
    _, folder = make_tier()
    can_continue = threading.Event()
    peer: Any = SimpleNamespace(send=lambda *_: can_continue.wait(20), clear=lambda: True)
    tier = MemoryCopier(folder, 1, peer)
    tier.save({"state_dict": {}}, CommitInfo(step=5, epoch=0, world_size=1), lambda _: False)
    with pytest.raises(OSError, match="could not be deleted: a copy is still being written"):
        tier.clear()
    can_continue.set()


def test_training_may_modify_the_state_while_it_is_written():
    tier, folder = make_tier()
    weight = torch.ones(2)
    tier.save({"state_dict": {"weight": weight}}, CommitInfo(step=5, epoch=0, world_size=1), lambda _: False)
    weight.fill_(7.0)
    assert tier._job is not None
    tier._job.join(20)
    newest = folder.find_newest()
    assert newest is not None
    assert torch.load(newest.path)["state_dict"]["weight"].tolist() == [1.0, 1.0]


def test_a_state_that_is_not_finite_does_not_replace_the_copy():
    tier, folder = make_tier()
    save(tier, 5)
    save(tier, 7, has_problem=True)
    assert find_step(folder) == tier.step == 5


def test_too_little_memory_causes_one_warning_and_nothing_is_copied_afterwards(monkeypatch: pytest.MonkeyPatch):
    tier, folder = make_tier()
    monkeypatch.setattr(memory_folder.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.warns(UserWarning, match="The state is no longer copied to memory: 0 MB are free"):
        save(tier, 5)
    assert not tier.is_due(time.monotonic() + 1e6)
    assert find_step(folder) is None


def test_a_node_that_cannot_be_reached_does_not_delay_the_next_copy():
    tier, _ = make_tier()

    def send(*_: Any) -> bool:
        tier.record_pause(0.0)
        time.sleep(0.3)
        return False

    tier._peer = SimpleNamespace(send=send)  # pyright: ignore[reportAttributeAccessIssue]
    save(tier, 5)
    assert 0 < tier._write_seconds < 0.3
    assert tier.is_due(time.monotonic() + memory_copier.MIN_INTERVAL_SECONDS)


def test_another_error_of_a_copy_is_raised_at_the_next_one(monkeypatch: pytest.MonkeyPatch):
    tier, folder = make_tier()

    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(folder, "commit", fail)
    save(tier, 5)
    with pytest.raises(RuntimeError, match="a bug"):
        save(tier, 7)


@pytest.mark.parametrize(("committed_step", "kept_step"), [(None, 5), (4, 5), (5, None), (6, None)])
def test_the_end_of_training_frees_the_memory_unless_the_copy_is_newer_than_storage(
    committed_step: int | None, kept_step: int | None
):
    tier, folder = make_tier()
    save(tier, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tier.close(committed_step)
    assert find_step(folder) == kept_step
    assert folder.path.exists() == (kept_step is not None)


def test_an_interrupted_run_does_not_wait_for_a_slow_copy_which_is_deleted_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_copier, "INTERRUPT_TIMEOUT_SECONDS", 0.01)
    tier, folder = make_tier()
    may_write = threading.Event()
    tier.save({"state_dict": {}}, CommitInfo(step=5, epoch=0, world_size=1), lambda _: not may_write.wait(20))
    tier.close(9, is_interrupted=True)
    assert tier._job is not None
    assert not tier._job.done()
    may_write.set()
    tier.wait(20)
    assert not folder.path.exists()


def test_a_tier_without_a_copy_leaves_no_folder(memory: Path):
    tier, _ = make_tier()
    tier.close(None)
    assert [*memory.glob("*/*")] == []
