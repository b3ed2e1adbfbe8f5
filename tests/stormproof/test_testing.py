import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from stormproof import CheckpointRecovery, resumable, testing
from stormproof.checkpoint import COMMIT_POINTS, PRUNING_POINTS, SHARD_POINTS, fault_points
from stormproof.errors import StormproofError
from stormproof.testing import HOOKS, POSITIONS, FaultInjector, fault_injection, flip_bit, truncate_file
from tests.support.cases import slow_except
from tests.support.forked_command import ROOT
from tests.support.small_fits import (
    LIGHTNING_WARNING_FILTERS,
    ValidatedRegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS


UNSHARDED_POSITIONS = [position for position in POSITIONS if position not in SHARD_POINTS]


class _InjectedError(RuntimeError):
    pass


class _Recorder(FaultInjector):
    """Writes down each phase that is reached, with the step."""

    def __init__(self) -> None:
        super().__init__()
        self.reached: list[tuple[str, int]] = []

    def _trigger(self, at: str, step: int) -> None:
        self.reached.append((at, step))
        super()._trigger(at, step)

    def of_the_thread_of(self, phase: str) -> list[tuple[str, int]]:
        """What was reached in the thread that comes by this phase: training goes on while a checkpoint is written."""
        writing = {*COMMIT_POINTS, *PRUNING_POINTS}
        return [each for each in self.reached if (each[0] in writing) == (phase in writing)]


def _fit(folder: Path, faults: FaultInjector, **options: Any) -> Any:
    """Two epochs of three steps, a checkpoint a step, a validation an epoch."""
    recovery = CheckpointRecovery(folder / "checkpoints", every_n_train_steps=1)
    rich = make_module(kind=ValidatedRegressionModule)
    fit = make_trainer(callbacks=[recovery, faults], max_epochs=2, **options)
    fit.fit(rich, resumable(make_loader(6)), make_loader(2), ckpt_path=recovery.latest_checkpoint())
    return rich


def test_a_training_passes_every_phase(tmp_path: Path):
    faults = _Recorder()
    _fit(tmp_path, faults)
    assert {phase for phase, _ in faults.reached} == set(UNSHARDED_POSITIONS)
    assert set(UNSHARDED_POSITIONS) == {*HOOKS, *COMMIT_POINTS, *PRUNING_POINTS}


@pytest.mark.parametrize("phase", slow_except(UNSHARDED_POSITIONS, UNSHARDED_POSITIONS[::3]))
def test_a_fault_strikes_where_it_was_aimed_and_once(phase: str, tmp_path: Path):
    faults = _Recorder()
    faults.fail(_InjectedError(phase), at=phase)
    with pytest.raises(_InjectedError, match=phase):
        _fit(tmp_path, faults)
    assert faults.of_the_thread_of(phase)[-1][0] == phase, "something ran after it"
    assert [reached for reached, _ in faults.reached].count(phase) == 1
    _fit(tmp_path, faults)  # it has struck: the run goes on to its end
    assert faults.of_the_thread_of("on_train_batch_end")[-1][1] == 6


@pytest.mark.parametrize("step", [0, 2, 5])
@pytest.mark.parametrize("phase", ["on_train_batch_start", "on_before_optimizer_step", "checkpoint synced"])
def test_a_fault_strikes_at_the_step_it_was_aimed_at(phase: str, step: int, tmp_path: Path):
    faults = _Recorder().fail(_InjectedError(), at=phase, step=step)
    with pytest.raises(_InjectedError):
        _fit(tmp_path, faults)
    assert faults.of_the_thread_of(phase)[-1] == (phase, step)


class _TwoOptimizersModule(ValidatedRegressionModule):
    """``global_step`` increases by two with each batch."""

    automatic_optimization = False

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch).mean())
            optimizer.step()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        return tuple(torch.optim.SGD(self.parameters(), 0.1) for _ in range(2))


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_fault_at_a_skipped_step_occurs_at_the_next_step(step: int):
    faults = _Recorder().fail(_InjectedError(), at="on_train_batch_end", step=step)
    with pytest.raises(_InjectedError):
        make_trainer(callbacks=[faults]).fit(make_module(kind=_TwoOptimizersModule), make_loader(6), make_loader(2))
    assert faults.reached[-1] == ("on_train_batch_end", 2 * math.ceil(step / 2))


@pytest.mark.parametrize(
    ("fault", "description"),
    [
        ({"step": 99}, "`on_train_batch_end`, step 99"),
        ({"rank": 1}, "`on_train_batch_end`, rank 1"),
        ({"at": "on_validation_end", "step": 7, "rank": 0}, "`on_validation_end`, step 7, rank 0"),
        ({"at": "shard written"}, "`shard written`"),
    ],
)
def test_a_fault_that_did_not_occur_fails_the_fit(fault: dict[str, Any], description: str, tmp_path: Path):
    with pytest.raises(StormproofError, match=f"ended at step 6 before these faults occurred: {description}. Choose"):
        _fit(tmp_path, FaultInjector().fail(_InjectedError(), **fault))


@pytest.mark.parametrize(
    ("options", "step"), [({"max_epochs": 0}, None), ({"limit_train_batches": 0}, None), ({"max_steps": 2}, 3)]
)
def test_a_fault_fails_a_fit_that_ends_before_it(options: dict[str, Any], step: int | None):
    trainer = make_trainer(callbacks=[FaultInjector().fail(_InjectedError(), step=step)], **options)
    with pytest.raises(StormproofError, match="before these faults occurred"):
        trainer.fit(make_module(kind=ValidatedRegressionModule), make_loader(6), make_loader(2))


def test_a_fault_in_training_fails_a_validation_without_training():
    trainer = make_trainer(callbacks=[FaultInjector().fail(_InjectedError())])
    with pytest.raises(StormproofError, match="remove FaultInjector from this Trainer"):
        trainer.validate(make_module(kind=ValidatedRegressionModule), make_loader(2))


@pytest.mark.parametrize(
    ("phase", "step", "strikes"),
    [
        ("on_train_batch_end", 3, False),
        ("on_train_batch_end", 4, False),
        ("checkpoint synced", 4, False),
        ("on_train_batch_start", 4, True),
        ("on_train_batch_end", 5, True),
    ],
)
def test_a_resumed_run_skips_and_logs_faults_of_earlier_attempts(
    phase: str, step: int, strikes: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(_InjectedError):
        _fit(tmp_path, FaultInjector().fail(_InjectedError(), at="on_train_batch_start", step=4))
    faults = FaultInjector().fail(_InjectedError(), at=phase, step=step)
    with pytest.raises(_InjectedError) if strikes else nullcontext():
        _fit(tmp_path, faults)
    notice = f"faults before step 4, from which the run resumes, are skipped: `{phase}`, step {step}"
    assert (notice in capfd.readouterr().out) is not strikes


def test_a_position_of_rank_zero_refuses_other_ranks():
    with pytest.raises(ValueError, match=r"`rank` must be 0 or None with `at='log appended'`, .*, got 1"):
        FaultInjector().kill(at="log appended", rank=1)


def test_an_error_of_one_s_own_or_a_plain_one_is_raised(tmp_path: Path):
    with pytest.raises(RuntimeError, match="injected fault at 'on_train_epoch_end'"):
        _fit(tmp_path, FaultInjector().fail(at="on_train_epoch_end"))
    with pytest.raises(KeyError, match="mine"):
        _fit(tmp_path, FaultInjector().fail(KeyError("mine")))


def test_many_faults_are_ordered_in_one_sentence_and_all_trigger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(fault_injection.time, "sleep", slept.append)
    faults = FaultInjector().slow(0.5).slow(0.25, at="on_validation_batch_start").slow(2.0, step=4)
    _fit(tmp_path, faults)
    assert slept == [0.5, 0.25, 2.0]


@pytest.mark.parametrize(
    "order",
    [FaultInjector.kill, FaultInjector.stop, FaultInjector.fail, FaultInjector.torn_write, FaultInjector.bit_flip],
)
def test_a_phase_that_is_none_is_named(order: Callable[..., Any]):
    with pytest.raises(ValueError, match=r"`at` must be one of on_fit_start, .*, got 'lunch'"):
        order(FaultInjector(), at="lunch")


def test_nothing_is_watched_any_more_after_the_fit(tmp_path: Path):
    watching = list(fault_points._OBSERVERS)
    _fit(tmp_path / "one", FaultInjector())
    assert watching == fault_points._OBSERVERS
    with pytest.raises(_InjectedError):
        _fit(tmp_path / "two", FaultInjector().fail(_InjectedError()))
    assert watching == fault_points._OBSERVERS


def test_a_nan_in_a_gradient_makes_the_weights_nan_from_that_step_on(tmp_path: Path):
    finite_flags: list[bool] = []

    class _Looks(FaultInjector):
        def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
            super().on_train_batch_start(*args, **kwargs)
            finite_flags.append(bool(self.trainer.lightning_module.layer.weight.isnan().any()))

    with pytest.warns(match="state_dict/layer.weight is not finite"):
        _fit(tmp_path, _Looks().nan(step=3))
    assert finite_flags == [False] * 4 + [True] * 2


@pytest.mark.filterwarnings("ignore:Skipping checkpoint")
@pytest.mark.parametrize("order", [FaultInjector.torn_write, FaultInjector.bit_flip])
def test_damage_to_the_newest_file_is_found_before_anything_older_is_deleted(
    order: Callable[..., FaultInjector], tmp_path: Path
):
    faults = order(FaultInjector(), step=2).fail(_InjectedError(), at="commit begins", step=3)
    with (
        pytest.warns(UserWarning, match=r"000003-step-2\.ckpt was just committed but is bad"),
        pytest.raises(_InjectedError),
    ):
        _fit(tmp_path, faults)
    names = sorted(file.name for file in (tmp_path / "checkpoints").glob("*.ckpt"))
    assert names == ["000001-step-0.ckpt", "000002-step-1.ckpt"]
    assert (tmp_path / "checkpoints" / "quarantine" / "000003-step-2.ckpt").exists()
    assert str(CheckpointRecovery(tmp_path / "checkpoints").latest_checkpoint()).endswith("000002-step-1.ckpt")


def test_a_torn_file_has_lost_its_end(tmp_path: Path):
    file = tmp_path / "x"
    file.write_bytes(bytes(range(100)))
    truncate_file(file)
    assert file.read_bytes() == bytes(range(50))
    truncate_file(file, kept_fraction=0.1)
    assert file.read_bytes() == bytes(range(5))
    truncate_file(file, kept_fraction=0)
    assert file.read_bytes() == b""


@pytest.mark.parametrize(("bit", "expected"), [(0, b"\x01\0\0\0"), (15, b"\0\x80\0\0"), (None, b"\0\0\x01\0")])
def test_one_bit_is_flipped_and_flipped_back(bit: int | None, expected: bytes, tmp_path: Path):
    file = tmp_path / "x"
    file.write_bytes(bytes(4))
    flip_bit(file, bit)
    assert file.read_bytes() == expected
    flip_bit(file, bit)
    assert file.read_bytes() == bytes(4)


SCRIPT = """
    import sys, warnings
    import pytorch_lightning as pl
    from tests.support.small_fits import RegressionModule, make_loader, make_module, make_trainer
    from stormproof.testing import FaultInjector
    warnings.simplefilter("ignore")

    class Says(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            print(trainer.global_step, flush=True)

    faults = getattr(FaultInjector(), sys.argv[1])(step=2)
    make_trainer(callbacks=[Says(), faults]).fit(make_module(kind=RegressionModule), make_loader())
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["kill", "stop"])
def test_a_killed_and_a_stopped_process_are_seen_from_outside(order: str):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), order],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        if order == "stop":
            assert os.WIFSTOPPED(status)
            os.kill(child.pid, signal.SIGCONT)  # it goes on as if nothing had been
            assert child.wait(60) == 0
            assert child.stdout.read().split() == ["1", "2", "3", "4", "5", "6"]
        else:
            child.returncode = os.waitstatus_to_exitcode(status)
            assert child.returncode == -signal.SIGKILL
            assert child.stdout.read().split() == ["1", "2"]
    finally:
        child.stdout.close()
        if child.returncode is None:
            child.kill()
            child.wait()


def test_the_file_that_is_damaged_is_the_one_written_last(tmp_path: Path):
    faults = FaultInjector()
    _fit(tmp_path, faults)
    newest = max((tmp_path / "checkpoints").glob("*.ckpt"), key=lambda file: file.name)
    assert faults.newest_file() == newest
    torch.load(newest, weights_only=True)


@pytest.mark.parametrize("factor", [1000.0, math.nan])
def test_a_spike_multiplies_the_numbers_of_one_batch(factor: float, tmp_path: Path):
    batches: list[torch.Tensor] = []

    class Sees(ValidatedRegressionModule):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            batches.append(batch.clone())
            return super().training_step(batch, batch_idx)

    fit = make_trainer(callbacks=[FaultInjector().spike(factor, step=2)])
    fit.fit(make_module(kind=Sees), resumable(make_loader(6)), make_loader(2))
    plain = list(make_loader(6))
    expected = [*plain[:2], plain[2] * factor]
    assert all(
        torch.equal(actual.nan_to_num(), expected_batch.nan_to_num())
        for actual, expected_batch in zip(batches, expected, strict=True)
    )


def test_faults_may_be_ordered_by_an_environment_variable(monkeypatch: pytest.MonkeyPatch):
    assert len(testing.faults_from_environment()) == 0
    monkeypatch.setenv("STORMPROOF_FAULTS", "nan:3 spike:5 nan:7")
    assert len(testing.faults_from_environment()) == 3
    monkeypatch.setenv("STORMPROOF_FAULTS", "lunch:3")
    with pytest.raises(
        ValueError, match="STORMPROOF_FAULTS must contain words like nan:STEP and spike:STEP, got 'lunch:3'"
    ):
        testing.faults_from_environment()
