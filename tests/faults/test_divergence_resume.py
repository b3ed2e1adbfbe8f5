"""Trainings that diverge and are killed: in the end the bits are those of one that diverged and was left alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from stormproof import DivergenceGuard, Preemption
from stormproof.testing import FaultInjector
from tests.faults.test_preemption_resume import checkpoint_steps
from tests.support.cases import mark_cases
from tests.support.exact_resume_training import Cell, train
from tests.support.forked_attempts import Outcome, assert_bitwise_equal, run_attempt

pytestmark = pytest.mark.slow

NAN = float("nan")
CELLS = {
    "one rank": Cell(every_n_train_steps=5, epochs=4),
    "two ranks": Cell(every_n_train_steps=5, epochs=6, ranks=2),
    "sharded averages": Cell(every_n_train_steps=5, epochs=6, ranks=2, sharded=True, ema=True),
    "averages in shards": Cell(every_n_train_steps=5, epochs=6, ranks=2, sharded=True, saves_shards=True, ema=True),
    "two-dimensional": Cell(
        every_n_train_steps=5, epochs=5, ranks=4, sharded=True, saves_shards=True, tensor_parallel=2
    ),
    "averaged weights": Cell(every_n_train_steps=5, epochs=4, ema=True),
    "16 bits and a scaler": Cell(every_n_train_steps=5, epochs=4, precision="16-mixed"),
    "workers, accumulated": Cell(every_n_train_steps=3, epochs=6, workers=2, accumulate=2),
}


def skip_batches(cell: Cell) -> list[pl.Callback]:
    """A batch of the last rank is NaN, twice."""
    faults = FaultInjector()
    for step in (12, 22):
        faults.spike(NAN, step=step, rank=cell.ranks - 1)
    return [faults, DivergenceGuard("skip")]


def roll_back(cell: Cell) -> list[pl.Callback]:
    faults = FaultInjector()
    for step in (21, 22, 23):
        faults.spike(NAN, step=step, rank=cell.ranks - 1)
    return [faults, DivergenceGuard(lr_factor=0.5)]


def roll_back_late(cell: Cell) -> list[pl.Callback]:
    """It looks seldom, and finds ruined weights."""
    return [FaultInjector().spike(NAN, step=23, rank=cell.ranks - 1), DivergenceGuard(every_n_steps=4)]


TREATMENTS: dict[str, Callable[[Cell], list[pl.Callback]]] = {
    "skips": skip_batches,
    "goes back": roll_back,
    "goes back late": roll_back_late,
}


def run_treated(cell: Cell, folder: Path, treatment: str, *faults: Callable[[], Any]) -> Outcome:
    return run_attempt(
        cell, folder, lambda: [*TREATMENTS[treatment](cell), *(fault() for fault in faults)], function=train_with_guard
    )


def train_with_guard(cell: Cell, folder: Path, extra: Any, **options: Any) -> Any:
    (callbacks,) = extra
    guard = next(callback for callback in callbacks if isinstance(callback, DivergenceGuard))
    outcome = train(cell, folder, extra=callbacks, **options)
    return {**outcome, "guard": guard.state_dict()}


@cache
def train_undisturbed(cell: Cell, treatment: str) -> Outcome:
    with TemporaryDirectory() as folder:
        outcome = run_treated(cell, Path(folder), treatment)
    assert outcome.results is not None, outcome.output
    return outcome


def guard_state(outcome: Outcome) -> dict[str, Any]:
    assert outcome.results is not None, outcome.output
    assert all(result["guard"] == outcome.results[0]["guard"] for result in outcome.results)
    return outcome.results[0]["guard"]


@pytest.mark.parametrize("name", CELLS)
def test_skipping_and_going_back_do_what_they_say(name: str):
    cell = CELLS[name]
    scaled = cell.precision == "16-mixed"  # whose scaler refuses such steps by itself
    assert guard_state(train_undisturbed(cell, "skips"))["skipped"] == (0 if scaled else 2)
    in_time, late = (guard_state(train_undisturbed(cell, treatment)) for treatment in ("goes back", "goes back late"))
    assert (in_time["rollbacks"], in_time["lr_factor"]) == ((0, 1.0) if scaled else (1, 0.5))
    assert (late["rollbacks"], late["lr_factor"]) == (1, 1.0)  # of the scaled one, for its running statistics


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_the_replicas_of_all_ranks_stay_the_same(treatment: str):
    results = train_undisturbed(CELLS["two ranks"], treatment).results
    assert results is not None
    names = [name for name in results[0]["weights"] if "running" not in name]  # those statistics are each rank's own
    for part in ("optimizer", "schedulers"):
        assert repr(results[0][part]) == repr(results[1][part])
    assert all(torch.equal(results[0]["weights"][name], results[1]["weights"][name]) for name in names)


PHASES = [
    ("on_train_batch_end", 13),  # after the first skip
    ("on_train_batch_start", 22),  # between two anomalous steps
    ("on_train_batch_end", 24),  # after it was decided to go back, before it was done
    ("checkpoint half written", 24),  # of the state that it went back to
    ("on_train_batch_start", 24),
    ("on_train_batch_end", 27),
    ("on_train_batch_end", 36),
]


@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("name", mark_cases(CELLS, ["one rank"]))
def test_killed_again_and_again_it_ends_with_the_same_bits(name: str, treatment: str, tmp_path: Path):
    cell = CELLS[name]
    for number, (phase, step) in enumerate(PHASES):
        if phase == "checkpoint half written" and guard_state(train_undisturbed(cell, treatment))["rollback_steps"] != [
            step
        ]:
            continue  # there is none of that step
        rank = 0 if phase == "checkpoint half written" else number % cell.ranks
        phase = phase.replace("checkpoint", "shard") if cell.saves_shards else phase  # noqa: PLW2901
        killed = run_treated(
            cell, tmp_path, treatment, lambda at=phase, at_step=step, on=rank: FaultInjector().stop(at, at_step, on)
        )
        assert killed.was_killed, f"nothing was killed at {phase!r} of step {step}: {killed.output}"
    assert_bitwise_equal(run_treated(cell, tmp_path, treatment), train_undisturbed(cell, treatment))


@pytest.mark.parametrize("name", ["one rank", "two ranks"])
def test_told_to_end_while_it_diverges_it_saves_no_such_state(name: str, tmp_path: Path):
    cell = CELLS[name]
    left = run_treated(
        cell, tmp_path, "goes back late", Preemption, lambda: FaultInjector().signal(at="on_train_batch_end", step=24)
    )
    assert left.exit_codes == ((75,) if cell.ranks == 1 else (75, 0)), left.output
    assert_bitwise_equal(
        run_treated(cell, tmp_path, "goes back late", Preemption), train_undisturbed(cell, "goes back late")
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_out_of_its_budget_all_ranks_end_together_with_code_76(ranks: int, tmp_path: Path):
    cell = Cell(every_n_train_steps=5, epochs=4, ranks=ranks)
    outcome = run_attempt(
        cell,
        tmp_path,
        lambda: [FaultInjector().spike(NAN, step=12, rank=ranks - 1), DivergenceGuard("stop")],
        function=train_with_guard,
    )
    assert outcome.exit_codes == (76,) * ranks, outcome.output
    assert "training diverges at step 13: the gradient norm is nan" in outcome.output
    assert checkpoint_steps(tmp_path)[-1] == 10
