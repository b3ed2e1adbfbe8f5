"""Optimizers and schedules of a task."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from stormproof_train.data.digits import Digits
from stormproof_train.errors import UserError
from stormproof_train.models import MLP
from stormproof_train.schedulers import none, warmup_cosine
from stormproof_train.task import takes_run_length
from tests.support.task_fits import IGNORE_LIGHTNING_WARNINGS, make_task, make_trainer

pytestmark = IGNORE_LIGHTNING_WARNINGS


def test_only_what_is_to_be_trained_is_given_to_the_optimizer(tmp_path: Path):
    network = MLP((1, 8, 8), 10, nn.ReLU, width=4, depth=1)
    network[1].requires_grad_(False)
    received: list[Any] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        received.extend(parameters)
        return torch.optim.SGD(parameters, lr=0.1)

    frozen = network[1].weight.clone()
    trainer, _ = make_trainer(tmp_path)
    trainer.fit(make_task(Digits.spec, network=network, optimizer=optimizer), datamodule=Digits(batch_size=600))
    assert [id(parameter) for parameter in received] == [id(parameter) for parameter in network[3].parameters()]
    assert torch.equal(network[1].weight, frozen)


LENGTHS = {
    "cosine": (lr_scheduler.CosineAnnealingLR, {}, True),
    "cosine with its own length": (lr_scheduler.CosineAnnealingLR, {"T_max": 5}, False),
    "one cycle": (lr_scheduler.OneCycleLR, {}, True),
    "one cycle with its own length": (lr_scheduler.OneCycleLR, {"total_steps": 100}, False),
    "warm-up and cosine": (warmup_cosine, {"warmup_fraction": 0.1}, True),
    "steps": (lr_scheduler.StepLR, {"step_size": 3}, False),
    "plateau": (lr_scheduler.ReduceLROnPlateau, {}, False),
    "exponential": (lr_scheduler.ExponentialLR, {"gamma": 0.9}, False),
    "none": (none, {}, False),
}


@pytest.mark.parametrize(("scheduler", "given", "expected"), LENGTHS.values(), ids=LENGTHS.keys())
def test_a_schedule_counts_steps_when_the_run_gives_its_length(
    scheduler: Callable[..., Any], given: dict[str, Any], expected: bool
):
    assert takes_run_length(scheduler, given) is expected


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def _rates(folder: Path, scheduler: Callable[..., Any], counts_steps: bool, **options: Any) -> list[float]:
    """The logged learning rate of each of the 3 epochs x 4 optimizer steps."""
    trainer, recorder = make_trainer(folder, max_epochs=3, **options)
    task = make_task(Digits.spec, optimizer=_sgd, scheduler=scheduler, counts_steps=counts_steps)
    trainer.fit(task, datamodule=Digits(batch_size=400))
    return [value for _, value in recorder.rows["optimizer/lr"]]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_schedule_over_the_run_ends_with_the_run(accumulated: int, tmp_path: Path):
    def cosine(optimizer: Any, T_max: int, **offered: Any) -> Any:  # noqa: N803 (torch's name)
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max)

    rates = _rates(tmp_path, cosine, counts_steps=True, accumulate_grad_batches=accumulated)
    expected = [0.1 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert rates == pytest.approx(expected, abs=1e-7)


def test_one_cycle_climbs_to_the_optimizers_rate(tmp_path: Path):
    def one_cycle(optimizer: Any, total_steps: int, max_lr: float, **offered: Any) -> Any:
        return lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=total_steps)

    rates = _rates(tmp_path, one_cycle, counts_steps=True)
    assert rates[0] == pytest.approx(0.1 / 25)
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert rates[-1] < 1e-5


def test_a_schedule_of_its_own_length_counts_epochs(tmp_path: Path):
    def step(optimizer: Any, **offered: Any) -> Any:
        return lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    assert _rates(tmp_path, step, counts_steps=False) == pytest.approx([0.1] * 4 + [0.05] * 4 + [0.025] * 4)


def test_a_plateau_is_judged_by_the_validation_loss(tmp_path: Path):
    def plateau(optimizer: Any, **offered: Any) -> Any:
        return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=10, threshold_mode="abs")

    rates = _rates(tmp_path, plateau, counts_steps=False)
    assert rates == pytest.approx([0.1] * 8 + [0.01] * 4)  # ten better than the first epoch is what no other can be


def test_no_schedule_is_a_constant_rate(tmp_path: Path):
    assert _rates(tmp_path, lambda **offered: None, counts_steps=False) == pytest.approx([0.1] * 12)


def test_a_schedule_over_a_run_without_an_end_is_a_sentence():
    task: Any = make_task(Digits.spec, scheduler=lambda optimizer, T_max, **_: None, counts_steps=True)  # noqa: N803
    task._trainer = SimpleNamespace(estimated_stepping_batches=float("inf"))
    with pytest.raises(UserError, match=r"max_epochs|max_steps"):
        task.configure_optimizers()
