"""Trainings in which a unit dies and is revived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from tests.stormproof.units.unit_fits import (
    NamedLayers,
    OnStep,
    TrainingModule,
    make_detector,
    make_loader,
    set_unit_weights,
)
from tests.support.small_fits import make_trainer

UNIT, STEP = 1, 2


class NamedNet(NamedLayers):
    """Layers by name, put together by ``run``; by itself none of their units is dormant."""

    def __init__(self, run: Callable[[Any, torch.Tensor], torch.Tensor], **modules: nn.Module) -> None:
        super().__init__(run, **modules)
        for module in modules.values():
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                nn.init.ones_(module.bias)  # type: ignore[arg-type]


class Snapshot(pl.Callback):
    """What the weights, the optimizer's moments and the outputs are when step ``STEP`` is done."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step != STEP:
            return
        net = pl_module.net
        self.weights = {name: value.clone() for name, value in net.state_dict().items()}
        states = trainer.optimizers[0].state
        self.moments = {
            (name, key): value.clone()
            for name, parameter in net.named_parameters()
            for key, value in states[parameter].items()
            if torch.is_tensor(value) and value.shape == parameter.shape
        }
        net.eval()
        self.outputs = net(self.data)
        net.train()


def reinitialize_unit(net: nn.Module, data: torch.Tensor, layer: str, **options: Any) -> tuple[Snapshot, Snapshot, Any]:
    """Unit 1 of ``layer`` dies in the first step and is revived after the second."""
    before, after = Snapshot(data), Snapshot(data)
    dead = options.pop("dead", None) or make_detector(reinit_every_n_steps=STEP, every_n_steps=1, dormant_threshold=0.0)
    kill = OnStep(1, lambda module: set_unit_weights(module.net.get_submodule(layer), UNIT, bias=-100.0))
    pl_trainer = make_trainer(callbacks=[kill, before, dead, after], **{"max_steps": STEP, "max_epochs": -1} | options)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    pl_trainer.fit(TrainingModule(net, lambda parameters: optimizer), make_loader(data))
    return before, after, dead
