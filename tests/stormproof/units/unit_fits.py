"""Trainings of a few steps under a DeadNeuronDetector, as small as they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stormproof import DeadNeuronDetector, MaxoutPieces
from tests.support.small_fits import make_trainer

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class TrainingModule(pl.LightningModule):
    """Trains ``net`` towards zero."""

    def __init__(self, net: nn.Module, optimizer: Optimizer | None = None) -> None:
        super().__init__()
        self.net = net
        self.optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.01))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).float().square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


class ValidatedModule(TrainingModule):
    """The same, with a validation that may have several loaders."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.net(batch[0])


@dataclass(frozen=True)
class Fit:
    dead: DeadNeuronDetector
    module: TrainingModule
    trainer: pl.Trainer

    def __getitem__(self, name: str) -> list[bool]:
        return self.dead.dead_units[name].tolist()


def make_loader(inputs: torch.Tensor, size: int = 4) -> DataLoader[Any]:
    return DataLoader(TensorDataset(inputs), batch_size=size)


def make_detector(**options: Any) -> DeadNeuronDetector:
    return DeadNeuronDetector(**{"every_n_steps": 10, "table": False, **options})


def fit(
    net: nn.Module,
    train: torch.Tensor,
    val: torch.Tensor | None = None,
    *callbacks: pl.Callback,
    dead: DeadNeuronDetector | None = None,
    optimizer: Optimizer | None = None,
    ckpt_path: Any = None,
    size: int = 4,
    **options: Any,
) -> Fit:
    """Trains ``net`` for an epoch of batches of four; ``callbacks`` come before the detector. ``size``: of val's."""
    dead = dead or make_detector()
    module = (
        net if isinstance(net, TrainingModule) else (TrainingModule if val is None else ValidatedModule)(net, optimizer)
    )
    pl_trainer = make_trainer(callbacks=[*callbacks, dead], **options)
    pl_trainer.fit(module, make_loader(train), None if val is None else make_loader(val, size), ckpt_path=ckpt_path)
    return Fit(dead, module, pl_trainer)


def make_inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def constant_units(outputs: torch.Tensor, axis: int) -> list[bool]:
    """Which units never leave one value, in plain words."""
    return [len(set(unit.flatten().tolist())) == 1 for unit in outputs.movedim(axis, 0)]


def set_unit_weights(layer: Any, unit: int | slice, *, bias: float | None = None, weight: float | None = None) -> None:
    """Overwrites a unit's weights: of a bias of -100 no input of these tests comes back."""
    with torch.no_grad():
        if bias is not None:
            layer.bias[unit] = bias
        if weight is not None:
            layer.weight[unit] = weight


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    """Linear layers and activations in turn: ``net.1`` is the first activation."""
    torch.manual_seed(seed)
    layers = [(nn.Linear(a, b), activation()) for a, b in pairwise(widths)]
    return nn.Sequential(*[module for pair in layers for module in pair][:-1])


class OnStep(pl.Callback):
    """Calls ``function(module)`` once ``step`` steps are done."""

    def __init__(self, step: int, function: Callable[[Any], Any]) -> None:
        self.step, self.function = step, function

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.function(pl_module)


def zero_lr_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def count_forward_hooks(module: nn.Module) -> int:
    return sum(len(submodule._forward_hooks) for submodule in module.modules())


class NamedLayers(nn.Module):
    """Layers and activations by name, put together by ``run``."""

    def __init__(self, run: Callable[[Any, torch.Tensor], torch.Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


def make_linear(units: int, width: int = 6, dead: int | None = None) -> nn.Linear:
    torch.manual_seed(units)
    layer = nn.Linear(width, units)
    set_unit_weights(layer, slice(None), bias=0.5)  # by itself none of them is dead
    if dead is not None:
        set_unit_weights(layer, dead, bias=-100)
    return layer


def make_conv(channels: int, dead: int, width: int = 1, kind: type = nn.Conv2d) -> Any:
    torch.manual_seed(channels)
    layer = kind(width, channels, 3)
    set_unit_weights(layer, dead, bias=-100)
    return layer


def set_constant_units(layer: Any, units: int | slice, bias: float) -> Any:
    set_unit_weights(layer, units, bias=bias, weight=0)
    return layer


class SignedUnits(nn.Module):
    """Unit 0 fires on inputs above 0, unit 1 on those below, unit 2 never."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(1, 3)
        self.act = nn.ReLU()
        self.out = nn.Linear(3, 1)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
            self.a.bias.copy_(torch.tensor([0.0, 0.0, -1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.act(self.a(x)))


class Maxout(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.pieces = count, MaxoutPieces()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pieces(x.unflatten(-1, (-1, self.count))).amax(-1)


ABOVE, BELOW = torch.arange(1.0, 5.0)[:, None], -torch.arange(1.0, 5.0)[:, None]
