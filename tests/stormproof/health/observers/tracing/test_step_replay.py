"""A replayed step has no side effects."""

import random
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torchmetrics import MeanMetric

from stormproof.health.observers.tracing import step_replay
from stormproof.health.observers.tracing.step_replay import find_first_non_finite, replay_without_side_effects


class Busy(pl.LightningModule):
    """Has buffers, a metric, random numbers of three kinds, and logs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.mean = MeanMetric()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        noise = random.random() + torch.rand(()) + np.random.rand()  # noqa: NPY002 (the generator of the process)
        hidden = self.norm(self.layer(batch))
        self.mean.update(hidden.mean())
        self.log("train/loss", hidden.mean())
        return torch.sqrt(-hidden.abs()).mean() + noise


def _state(module: Busy) -> Any:
    return [
        random.getstate(), np.random.get_state()[1].tolist(),  # noqa: NPY002 torch.get_rng_state().tolist(),
        [buffer.tolist() for buffer in module.buffers()], module.mean.mean_value.tolist(), module.mean.update_count,
    ]  # fmt: skip


def test_generators_buffers_metrics_and_logs_are_as_before():
    module = Busy()
    module.mean.update(torch.tensor(1.0))
    before = _state(module)
    with replay_without_side_effects(module):
        module.training_step(torch.randn(4, 3), 0)
    assert _state(module) == before
    assert "log" not in vars(module)


def test_the_first_function_that_gives_what_is_not_finite_is_named_with_its_layer():
    module, batch = Busy(), torch.randn(4, 3)
    names = {id(parameter): name.rpartition(".")[0] for name, parameter in module.named_parameters()}
    assert find_first_non_finite(module, names, [batch], lambda: module.training_step(batch, 0)) == ("sqrt", "norm")


def test_a_replay_that_raises_an_error_finds_nothing():
    def step() -> None:
        raise RuntimeError("out of data")

    assert find_first_non_finite(Busy(), {}, [], step) is None


@pytest.mark.parametrize("place", ["tracker", "restoration"])
def test_an_error_of_the_replay_itself_is_raised(place: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise ArithmeticError(place)

    module, batch = Busy(), torch.randn(4, 3)
    owner, name = (torch, "isfinite") if place == "tracker" else (step_replay.rng, "restore")
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(ArithmeticError, match=place):
        find_first_non_finite(module, {}, [batch], lambda: module.training_step(batch, 0))
