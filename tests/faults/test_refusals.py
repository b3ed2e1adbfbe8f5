"""What could not be resumed is said when it is found, in a sentence, and costs nothing that was committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from stormproof.checkpoint import Store
from stormproof.testing import FaultInjector, flip_bit
from tests.support.exact_resume_training import SYNC_SAVE, Cell
from tests.support.forked_attempts import Outcome, assert_bitwise_equal, run_attempt, train_uninterrupted


def kill_at_step_5(folder: Path) -> None:
    assert run_attempt(Cell(), folder, lambda: FaultInjector().stop(step=6), recovery=SYNC_SAVE).was_killed


def assert_refused(outcome: Outcome, exit_code: int, sentence: str) -> None:
    assert outcome.exit_codes == (exit_code,), outcome.output
    assert sentence in outcome.output


@pytest.mark.slow
def test_a_forgotten_ckpt_path_is_refused_with_the_way_out(tmp_path: Path):
    kill_at_step_5(tmp_path)
    outcome = run_attempt(Cell(), tmp_path, resume=False)
    assert_refused(
        outcome,
        2,
        "a checkpoint of step 5, but fit was called without ckpt_path. Pass ckpt_path=recovery.latest_checkpoint()",
    )
    assert_bitwise_equal(run_attempt(Cell(), tmp_path), train_uninterrupted(Cell()))


@pytest.mark.slow
def test_a_monitor_that_is_never_logged_is_named_with_what_is(tmp_path: Path):
    outcome = run_attempt(Cell(), tmp_path, recovery={"monitor": "val/los"})
    assert_refused(outcome, 2, "monitor=val/los is not logged. Log it or choose one of: ")
    assert "val/loss" in outcome.output


@pytest.mark.slow
def test_nothing_is_committed_once_a_weight_is_nan(tmp_path: Path):
    outcome = run_attempt(Cell(), tmp_path, lambda: FaultInjector().nan(step=8))
    assert "step 9: state_dict/net.0.weight is not finite" in outcome.output
    store = Store(tmp_path / "checkpoints")
    assert [checkpoint.step for checkpoint in store.read_checkpoints()][-2:] == [7, 8]
    latest_checkpoint = store.latest_checkpoint()
    assert latest_checkpoint is not None
    assert latest_checkpoint.step == 8
    assert_bitwise_equal(run_attempt(Cell(), tmp_path), train_uninterrupted(Cell()))


def corrupt_all_checkpoints(folder: Path) -> list[str]:
    files = sorted((folder / "checkpoints").glob("*.ckpt"))
    for file in files:
        flip_bit(file)
    return [file.name for file in files]


@pytest.mark.slow
def test_a_folder_of_bad_checkpoints_only_is_no_first_start(tmp_path: Path):
    kill_at_step_5(tmp_path)
    spoiled = corrupt_all_checkpoints(tmp_path)
    for _ in range(2):  # it changes nothing, so the second start is told the same
        outcome = run_attempt(Cell(), tmp_path)
        assert_refused(outcome, 74, "has no good checkpoint (")
        assert "its content has changed since it was committed" in outcome.output
    assert sorted(file.name for file in (tmp_path / "checkpoints").glob("*.ckpt")) == spoiled


@pytest.mark.slow
def test_starting_over_beside_bad_checkpoints_keeps_them_aside(tmp_path: Path):
    kill_at_step_5(tmp_path)
    spoiled = corrupt_all_checkpoints(tmp_path)
    (tmp_path / "rows0.jsonl").unlink()
    assert_bitwise_equal(run_attempt(Cell(), tmp_path, start_over=True), train_uninterrupted(Cell()))
    assert {file.name for file in (tmp_path / "checkpoints" / "quarantine").glob("*.ckpt")} == set(spoiled)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["torn_write", "bit_flip"])
def test_a_checkpoint_that_was_damaged_is_walked_past(fault: str, tmp_path: Path):
    def faults() -> FaultInjector:
        ordered = FaultInjector()
        getattr(ordered, fault)(at="log appended", step=6)
        return ordered.stop(at="on_train_batch_start", step=6)

    assert run_attempt(Cell(), tmp_path, faults, recovery={"keep_last": 9, **SYNC_SAVE}).was_killed
    outcome = run_attempt(Cell(), tmp_path)
    assert_bitwise_equal(outcome, train_uninterrupted(Cell()))
    assert [file.name for file in (tmp_path / "checkpoints" / "quarantine").glob("*.ckpt")] == ["000007-step-6.ckpt"]
