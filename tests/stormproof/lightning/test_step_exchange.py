import copy
from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.distributed.elastic.utils.distributed import get_free_port

from stormproof import (
    CheckpointRecovery,
    DivergenceGuard,
    GradientNormMonitor,
    Preemption,
    StepTimer,
    TrainingHealth,
    resumable,
)
from stormproof.lightning import step_exchange
from stormproof.lightning.step_exchange import StepExchange
from tests.stormproof.divergence.diverging_fits import IGNORE_WARNINGS, Classifier, make_loader
from tests.support.ranks import call_on_two_ranks, join_two_ranks
from tests.support.small_fits import make_module, make_trainer

pytestmark = IGNORE_WARNINGS


@pytest.fixture
def exchange(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An exchange whose numbers count how often they were gathered."""
    trainer = make_trainer()
    position = [0]
    monkeypatch.setattr(step_exchange.internals, "loop_position", lambda _: tuple(position))
    exchange, gathered = StepExchange.of(trainer), Counter()

    def collect(name: str) -> list[float]:
        gathered[name] += 1
        return [float(gathered[name])]

    a, b = (exchange.add(lambda name=name: collect(name)) for name in ("a", "b"))
    yield SimpleNamespace(a=a, b=b, position=position, trainer=trainer)
    a.remove()
    b.remove()
    assert StepExchange.of(trainer) is not exchange


def test_one_collective_serves_all_readers(exchange: Any):
    assert exchange.a.take() is None
    assert exchange.a.read() == [[1.0]]
    assert exchange.b.read() == [[1.0]]


def test_numbers_are_read_once(exchange: Any):
    assert exchange.a.read() == [[1.0]]
    assert exchange.a.take() is None
    assert exchange.a.read() == [[2.0]]
    assert exchange.b.take() == [[2.0]]


def test_numbers_of_an_earlier_batch_are_not_read(exchange: Any):
    exchange.a.read()
    exchange.position[0] += 1
    assert exchange.b.take() is None
    assert exchange.b.read() == [[2.0]]


def test_a_copied_trainer_has_its_own_exchange(exchange: Any):
    copied = StepExchange.of(copy.deepcopy(exchange.trainer))
    assert isinstance(copied, StepExchange)
    assert copied is not StepExchange.of(exchange.trainer)


class Counts(pl.Callback):
    """Counts the collectives of Python code between two batches, by step."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.trainer: Any = None
        for name in ("all_gather", "all_reduce", "broadcast", "broadcast_object_list", "all_gather_object", "barrier"):
            setattr(dist, name, self._counted(getattr(dist, name)))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.trainer = trainer

    def _counted(self, function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.trainer is not None:
                self.counts[self.trainer.global_step] += 1
            return function(*args, **kwargs)

        return counted


def _train_rank(rank: int, folder: str, port: int) -> None:
    join_two_ranks(rank, port)
    counts = Counts()
    monitors = [StepTimer(), GradientNormMonitor(), TrainingHealth(every_n_steps=20)]  # intervals are chosen at step 20
    callbacks = [*monitors, DivergenceGuard("stop"), CheckpointRecovery(Path(folder, "checkpoints")), Preemption()]
    options = {"strategy": "ddp", "devices": 2, "max_steps": 45, "max_epochs": -1, "log_every_n_steps": 20}
    trainer = make_trainer(callbacks=[*callbacks, counts], **options)
    trainer.fit(make_module(pl, Classifier), resumable(make_loader()))
    assert {step: counts.counts[step] for step in (10, 20, 30, 40)} == {10: 1, 20: 1, 30: 1, 40: 1}
    assert trainer.callbacks[2]._observer_state is not None  # the diagnosis did not fail
    assert sum(counts.counts[step] for step in range(21, 30)) <= 1  # a signal, about once per second
    assert not any("exchange" in name for name in vars(trainer))


@pytest.mark.slow
def test_all_callbacks_share_a_collective_every_ten_steps(tmp_path: Path):
    call_on_two_ranks(_train_rank, str(tmp_path), get_free_port())


class SeesTimes(pl.Callback):
    """Reads at the end of an epoch how many compute times of each rank the diagnosis knows."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        (health,) = (callback for callback in trainer.callbacks if isinstance(callback, TrainingHealth))
        self.counts = [len(seconds) for seconds in health._observer.rank_times.seconds]


def _train_epoch_on_rank(rank: int, port: int) -> None:
    join_two_ranks(rank, port)
    sees_times = SeesTimes()
    options = {"strategy": "ddp", "devices": 2, "limit_train_batches": 20, "log_every_n_steps": 10}
    trainer = make_trainer(callbacks=[StepTimer(), TrainingHealth(), sees_times], **options)
    trainer.fit(make_module(pl, Classifier), make_loader())
    assert trainer.global_step == 20  # the timer gathers numbers after the last batch
    assert sees_times.counts == [10, 10]  # without traced steps


@pytest.mark.slow
def test_times_of_the_ranks_are_exchanged_at_the_end_of_an_epoch_even_after_another_exchange():
    call_on_two_ranks(_train_epoch_on_rank, get_free_port())


class TwoOptimizers(Classifier):
    """Steps once in the first batch and twice in each later one, so that no number of steps is a multiple of ten."""

    automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [super(TwoOptimizers, self).configure_optimizers() for _ in range(2)]

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        for optimizer in self.optimizers()[: 1 + (batch_idx > 0)]:
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


def _train_two_optimizers(rank: int, folder: str, port: int) -> None:
    join_two_ranks(rank, port)
    recovery = CheckpointRecovery(folder, train_time_interval=timedelta(milliseconds=1), keep_last=100)
    options = {"strategy": "ddp", "devices": 2, "limit_train_batches": 20, "log_every_n_steps": 10}
    timer = StepTimer()
    trainer = make_trainer(callbacks=[timer, recovery], **options)
    trainer.fit(make_module(pl, TwoOptimizers), resumable(make_loader()))
    assert trainer.global_step == 39
    assert timer.last_logged
    steps = [checkpoint.step for checkpoint in recovery.store.read_checkpoints()]
    assert steps == [0, 11, 21, 31, 39]


@pytest.mark.slow
def test_numbers_are_exchanged_although_no_batch_ends_at_a_multiple_of_ten_steps(tmp_path: Path):
    call_on_two_ranks(_train_two_optimizers, str(tmp_path), get_free_port())
