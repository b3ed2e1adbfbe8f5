"""A learning rate that stays lower whatever a scheduler makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LRScheduler,
    MultiplicativeLR,
    OneCycleLR,
)

from stormproof.divergence.lr_scale import LearningRateScale

SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (step + 1)),
    "exponential": lambda optimizer: ExponentialLR(optimizer, 0.9),
    "multiplicative": lambda optimizer: MultiplicativeLR(optimizer, lambda _: 0.8),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 20),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 1.0, total_steps=20),
}


def scheduled_lrs(schedule: Callable[[Optimizer], LRScheduler], factors: dict[int, float]) -> list[float]:
    """How far each of ten steps moves a weight whose gradient is 1; the factor changes before some of them."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler, rate = schedule(optimizer), LearningRateScale()
    ends = rate.attach([optimizer])
    moved = []
    for step in range(10):
        rate.factor = factors.get(step, rate.factor)
        before = weight.item()
        weight.grad = torch.ones_like(weight)
        for group in optimizer.param_groups:
            group["momentum"] = 0  # OneCycleLR cycles it
        optimizer.step()
        scheduler.step()
        moved.append(before - weight.item())
    for end in ends:
        end()
    return moved


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_is_the_schedules_rate_times_the_factor(name: str):
    plain, lowered = scheduled_lrs(SCHEDULES[name], {}), scheduled_lrs(SCHEDULES[name], {4: 0.5, 7: 0.125})
    factors = [1.0] * 4 + [0.5] * 3 + [0.125] * 3
    assert lowered == pytest.approx([move * factor for move, factor in zip(plain, factors, strict=True)])


def test_each_group_keeps_a_rate_of_its_own_and_a_tensor_stays_one():
    slow, fast = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    tensor = torch.tensor(2.0)
    optimizer = torch.optim.Adam([{"params": [slow], "lr": 0.25}, {"params": [fast], "lr": tensor}], foreach=False)
    rate = LearningRateScale()
    rate.factor = 0.5
    rate.attach([optimizer])
    slow.grad, fast.grad = torch.ones(1), torch.ones(1)
    optimizer.step()
    assert [slow.item(), fast.item()] == pytest.approx([-0.125, -1.0])
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[1]["lr"] is tensor
    assert tensor == 2.0


def test_once_ended_it_acts_no_more():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer: Any = torch.optim.SGD([weight], lr=1.0)
    rate = LearningRateScale()
    rate.factor = 0.5
    for end in rate.attach([optimizer]):
        end()
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == -1.0
