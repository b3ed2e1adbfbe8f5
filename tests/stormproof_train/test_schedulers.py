import math
from typing import Any

import pytest
import torch

from stormproof_train.schedulers import none, warmup_cosine


def _optimizer(*lrs: float) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups)


def _learning_rates(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[list[float]]:
    """The learning rates of each step, one list a parameter group."""
    rows = []
    for _ in range(steps):
        rows.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return [list(column) for column in zip(*rows, strict=True)]


def _factor(t: int, total: int, warmup: int, final: float) -> float:
    if t < warmup:
        return (t + 1) / (warmup + 1)
    return final + (1 - final) * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize(
    ("total", "warmup_fraction", "warmup", "final"),
    [
        (100, 0.05, 5, 0.0),
        (100, 0.05, 5, 0.1),
        (40, 0.5, 20, 0.0),
        (10, 0.99, 9, 0.25),
        (30, 0.0, 0, 0.0),
        (30, 0.0, 0, 1.0),
        (19, 0.05, 0, 0.0),
        (1, 0.05, 0, 0.0),
        (2, 0.5, 1, 0.5),
    ],
)
def test_the_learning_rate_is_the_formula_at_every_step(total: int, warmup_fraction: float, warmup: int, final: float):
    optimizer = _optimizer(0.3)
    scheduler = warmup_cosine(optimizer, total, warmup_fraction, final)
    (rates,) = _learning_rates(optimizer, scheduler, total + 1)  # the one after the last step too
    assert rates == pytest.approx([0.3 * _factor(t, total, warmup, final) for t in range(total + 1)], abs=1e-12)


def test_each_group_of_parameters_falls_to_the_fraction_of_its_own_rate():
    optimizer = _optimizer(0.3, 0.01)
    scheduler = warmup_cosine(optimizer, 20, warmup_fraction=0.25, final_fraction=0.5)
    for lr, rates in zip((0.3, 0.01), _learning_rates(optimizer, scheduler, 21), strict=True):
        assert rates == pytest.approx([lr * _factor(t, 20, 5, 0.5) for t in range(21)], abs=1e-12)


@pytest.mark.parametrize("interrupted_at", [3, 5, 12])
def test_a_schedule_goes_on_from_its_state(interrupted_at: int):
    optimizer = _optimizer(0.3)
    scheduler = warmup_cosine(optimizer, 20, warmup_fraction=0.25)
    _learning_rates(optimizer, scheduler, interrupted_at)
    resumed = _optimizer(0.3)
    restored = warmup_cosine(resumed, 20, warmup_fraction=0.25)
    resumed.load_state_dict(optimizer.state_dict())
    restored.load_state_dict(scheduler.state_dict())
    (rates,) = _learning_rates(resumed, restored, 20 - interrupted_at)
    assert rates == pytest.approx([0.3 * _factor(t, 20, 5, 0.0) for t in range(interrupted_at, 20)], abs=1e-12)


@pytest.mark.parametrize("name", ["warmup_fraction", "final_fraction"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_fraction_out_of_its_range_is_refused_by_name(name: str, value: float):
    with pytest.raises(ValueError, match=f"`{name}` must be in"):
        warmup_cosine(_optimizer(0.3), 10, **{name: value})


def test_a_warm_up_over_the_whole_run_is_refused():
    with pytest.raises(ValueError, match=r"`warmup_fraction` must be in \[0, 1\), got 1"):
        warmup_cosine(_optimizer(0.3), 10, warmup_fraction=1)


def test_no_schedule_is_none():
    assert none() is None
