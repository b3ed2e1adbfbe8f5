"""Runs with sharded parameters that are killed anywhere end with the same weights as an uninterrupted run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stormproof.checkpoint import COMMIT_POINTS, PRUNING_POINTS, SHARD_POINTS, Store
from stormproof.checkpoint.sharding.shard_reader import load_full
from stormproof.testing import FaultInjector, flip_bit
from tests.support.cases import mark_cases
from tests.support.exact_resume_training import SYNC_SAVE, Cell, StatefulModule, train
from tests.support.forked_attempts import assert_bitwise_equal, run_attempt, train_uninterrupted
from tests.support.object_stores import in_clean_process, run_s3_server

pytestmark = pytest.mark.slow

CELL = Cell(sharded=True, saves_shards=True, ranks=2)
AVERAGED_CELL = replace(CELL, ema=True)
POINTS = [*(point for point in COMMIT_POINTS if not point.startswith("checkpoint")), *SHARD_POINTS, *PRUNING_POINTS]
OTHER_RANK_POINTS = [point for point in SHARD_POINTS if point.startswith("shard")]


@pytest.mark.parametrize("part", mark_cases(["first", "second"], ["first"]))
def test_kills_inside_sharded_commits_cost_nothing_that_was_committed(part: str, tmp_path: Path):
    points = POINTS[::2] if part == "first" else POINTS[1::2]

    def kill_points() -> Iterator[tuple[str, int]]:
        yield from zip(points, range(3, 24), strict=False)

    # the ranks are stopped in turns, and only rank 0 reaches most of the points
    assert_bitwise_equal(_kill_rank_zero(kill_points(), tmp_path), train_uninterrupted(AVERAGED_CELL))


def _kill_rank_zero(points: Iterator[tuple[str, int]], folder: Path) -> Any:
    for point, step in points:
        outcome = run_attempt(AVERAGED_CELL, folder, lambda at=point, step=step: FaultInjector().stop(at, step, 0))
        assert outcome.was_killed, f"nothing was killed at {point!r} of step {step}: {outcome.output}"
    return run_attempt(AVERAGED_CELL, folder)


def test_kills_of_another_rank_that_is_writing_its_shard_cost_nothing(tmp_path: Path):
    for step, point in enumerate(OTHER_RANK_POINTS, 4):
        outcome = run_attempt(CELL, tmp_path, lambda at=point, step=step: FaultInjector().stop(at, step, 1))
        assert outcome.was_killed, outcome.output
    assert_bitwise_equal(run_attempt(CELL, tmp_path), train_uninterrupted(CELL))


@pytest.mark.parametrize("file", ["__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt"])
def test_all_ranks_resume_from_the_previous_checkpoint_if_any_file_is_damaged(file: str, tmp_path: Path):
    stop = lambda: FaultInjector().stop("on_train_batch_start", 6)  # noqa: E731
    assert run_attempt(CELL, tmp_path, stop, recovery=SYNC_SAVE).was_killed
    newest = Store(tmp_path / "checkpoints").read_checkpoints()[-1]
    flip_bit(newest.path / file)
    outcome = run_attempt(CELL, tmp_path)
    assert f"Skipping checkpoint {newest.path}: its content has changed" in outcome.output
    assert_bitwise_equal(outcome, train_uninterrupted(CELL))


class PartlyTrainedModule(StatefulModule):
    """Its optimizer keeps no state, a parameter is frozen, and another is never used."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.unused = nn.Linear(2, 2)
        self.net[1].bias.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class PartlyTrainedModuleWithMomentum(PartlyTrainedModule):
    """Its optimizer keeps a state for some parameters."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)


class ModuleWithExtraState(StatefulModule):
    """It saves a value that is not a tensor, with keys that torch changes in a sharded checkpoint."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.counts: dict[Any, Any] = {"empty": {}, 0: 0}

    def on_train_batch_end(self, *_: Any) -> None:
        self.counts[0] += 1

    def get_extra_state(self) -> dict[Any, Any]:
        return dict(self.counts)

    def set_extra_state(self, state: dict[Any, Any]) -> None:
        self.counts = dict(state)


def train_partly(cell: Cell, folder: Path, kind: type[StatefulModule] = PartlyTrainedModule, **options: Any) -> Any:
    return train(cell, folder, module=kind(cell), **options)


@pytest.mark.parametrize("kind", [PartlyTrainedModule, PartlyTrainedModuleWithMomentum, ModuleWithExtraState])
@pytest.mark.parametrize("saves_shards", [False, True])
def test_unusual_states_are_resumed_too(kind: type[StatefulModule], saves_shards: bool, tmp_path: Path):
    cell = Cell(sharded=True, saves_shards=saves_shards, ranks=2)
    options = {"function": train_partly, "kind": kind}
    for step in (3, 20):
        stop = partial(FaultInjector().stop, step=step)
        assert run_attempt(cell, tmp_path / "killed", stop, **options).was_killed
    resumed = run_attempt(cell, tmp_path / "killed", **options)
    assert_bitwise_equal(resumed, run_attempt(cell, tmp_path / "whole", **options))


def train_without_recovery(cell: Cell, folder: Path, **options: Any) -> Any:
    """Resumes with stock Lightning."""
    return train(cell, folder, arrange=lambda callbacks: callbacks[:-1], **options)


def test_stock_lightning_resumes_from_the_folder_of_a_sharded_checkpoint(tmp_path: Path):
    stop = lambda: FaultInjector().stop("on_train_batch_start", 6)  # noqa: E731
    assert run_attempt(CELL, tmp_path, stop, recovery=SYNC_SAVE).was_killed
    outcome = run_attempt(CELL, tmp_path, function=train_without_recovery)
    assert outcome.results is not None, outcome.output
    result = outcome.results[0]
    assert [entry[1] for entry in result["journal"] if entry[0] == "epoch"] == [0, 1, 2]
    assert {float(state["step"]) for state in result["optimizer"]["state"].values()} == {float(CELL.steps)}


def test_load_full_assembles_the_full_state(tmp_path: Path):
    assert run_attempt(CELL, tmp_path).results is not None
    newest = Store(tmp_path / "checkpoints").latest_checkpoint()
    assert newest is not None
    checkpoint = load_full(newest.path)
    module = StatefulModule(Cell())
    module.load_state_dict(checkpoint["state_dict"])
    optimizer = torch.optim.AdamW(module.parameters())
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    assert checkpoint["global_step"] == newest.step


def test_a_storage_error_of_another_rank_skips_the_checkpoint_and_training_continues(tmp_path: Path):
    fault = lambda: FaultInjector().fail(OSError(5, "Input/output error"), "shard written", 6, 1)  # noqa: E731
    outcome = run_attempt(CELL, tmp_path, fault, recovery={"keep_last": 50})
    assert "The checkpoint of step 6 was not saved: rank 1: Input/output error" in outcome.output
    assert_bitwise_equal(outcome, train_uninterrupted(CELL))
    steps = [checkpoint.step for checkpoint in Store(tmp_path / "checkpoints").read_checkpoints()]
    assert steps == [step for step in range(CELL.steps + 1) if step != 6]
    assert not list((tmp_path / "checkpoints").glob("*-step-6.*"))


def test_a_full_disk_of_another_rank_makes_room_and_saves_again(tmp_path: Path):
    fault = lambda: FaultInjector().fail(OSError(28, "No space left on device"), "shard written", 6, 1)  # noqa: E731
    outcome = run_attempt(CELL, tmp_path, fault, recovery={"keep_last": 50, **SYNC_SAVE})
    assert_bitwise_equal(outcome, train_uninterrupted(CELL))
    steps = [checkpoint.step for checkpoint in Store(tmp_path / "checkpoints").read_checkpoints()]
    assert steps[:3] == [5, 6, 7]


def test_a_nan_on_another_rank_is_not_committed(tmp_path: Path):
    outcome = run_attempt(CELL, tmp_path, lambda: FaultInjector().nan(step=8, rank=1), recovery=SYNC_SAVE)
    assert "step 9: " in outcome.output
    assert "is not finite" in outcome.output
    steps = [checkpoint.step for checkpoint in Store(tmp_path / "checkpoints").read_checkpoints()]
    assert steps[-1] == 8


@in_clean_process
def test_a_run_resumes_from_an_object_store_on_empty_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with run_s3_server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        recovery = {"dirpath": f"s3://{server.make_bucket()}/run"}
        for step, (point, rank) in enumerate([("shard half written", 1), ("metadata written", 0)], 5):
            stop = partial(FaultInjector().stop, point, step, rank)
            outcome = run_attempt(CELL, tmp_path, stop, recovery=recovery)
            assert outcome.was_killed, outcome.output
        assert_bitwise_equal(run_attempt(CELL, tmp_path, recovery=recovery), train_uninterrupted(CELL))


@in_clean_process
def test_a_node_with_an_empty_disk_resumes_from_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with run_s3_server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        recovery = {"mirror": f"s3://{server.make_bucket()}/run"}
        assert run_attempt(CELL, tmp_path, recovery=recovery).results is not None
        shutil.rmtree(tmp_path / "checkpoints")
        outcome = run_attempt(CELL, tmp_path, recovery=recovery)
        assert_bitwise_equal(outcome, train_uninterrupted(CELL))
        assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 1
