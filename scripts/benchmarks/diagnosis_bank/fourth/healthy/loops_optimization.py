"""Healthy runs with unusual optimization: perturbed weights, masks, local losses, fixed points and no backward pass."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.loops_support import (
    accuracy_above,
    all_of,
    digit_loaders,
    ends_below,
    make_generator,
    make_loader,
    mixed_digits,
    mlp,
    ran_to_end,
    step_output,
    unchanged,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from pytorch_lightning.callbacks import BaseFinetuning
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler, TensorDataset


class _Digits(pl.LightningModule):
    """Classifies digits. Subclasses change how the network is trained."""

    def __init__(self, network: nn.Module, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        logits = self(images)
        return step_output(self.return_dict, functional.cross_entropy(logits, labels), logits, labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))


class _Sharpness(_Digits):
    """Sharpness-aware minimization: the gradient is taken where the loss is largest nearby."""

    def __init__(self, network: nn.Module, return_dict: bool) -> None:
        super().__init__(network, return_dict)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        optimizer: Any = self.optimizers()
        weights = list(self.network.parameters())
        logits = self(images)
        loss = functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        self.manual_backward(loss)
        with torch.no_grad():
            norm = torch.stack([weight.grad.norm() for weight in weights if weight.grad is not None]).norm()
            offsets = [0.2 * weight.grad / (norm + 1e-12) for weight in weights if weight.grad is not None]
            for weight, offset in zip(weights, offsets, strict=True):
                weight.add_(offset)
        optimizer.zero_grad()
        self.manual_backward(functional.cross_entropy(self(images), labels))
        with torch.no_grad():
            for weight, offset in zip(weights, offsets, strict=True):
                weight.sub_(offset)
        optimizer.step()
        return step_output(self.return_dict, loss.detach(), logits, labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def _sharpness(seed: int, return_dict: bool) -> TrainingSetup:
    """Weights move up before the second backward pass of each step, and back after it."""
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
    return TrainingSetup(_Sharpness(network, return_dict), *digit_loaders(seed, 32), {"max_epochs": 5})


class _TopHalf(torch.autograd.Function):
    """Selects the larger half of the scores, with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        return (scores >= scores.flatten().median()).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


class _Subnetwork(nn.Module):
    """A linear layer with random weights that stay and scores that choose half of them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        signs = torch.randint(2, (outputs, inputs)) * 2.0 - 1
        self.weight = nn.Parameter(signs * 2 / inputs**0.5, requires_grad=False)
        self.scores = nn.Parameter(torch.rand(outputs, inputs) / inputs**0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.linear(inputs, self.weight * _TopHalf.apply(self.scores))  # pyright: ignore[reportOperatorIssue]


class _Searched(_Digits):
    """Trains scores only."""

    def configure_optimizers(self) -> Any:
        scores = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.SGD(scores, lr=0.1, momentum=0.9, weight_decay=1e-4)


def _searched(seed: int, return_dict: bool) -> TrainingSetup:
    """All weights keep their random values, and training chooses which are used."""
    network = nn.Sequential(
        nn.Flatten(), _Subnetwork(64, 192), nn.ReLU(), _Subnetwork(192, 192), nn.ReLU(), _Subnetwork(192, 10)
    )
    return TrainingSetup(_Searched(network, return_dict), *digit_loaders(seed, 32), {"max_epochs": 8})


def _weights_stay(outcome: Outcome) -> bool:
    return all(unchanged(f"network.{index}.weight")(outcome) for index in (1, 3, 5))


class _Gradual(BaseFinetuning):
    """Thaws the layers from the last to the first."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze([pl_module.network[:3], pl_module.network[3:6]], train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch in (2, 4):
            layers = pl_module.network[3:6] if epoch == 2 else pl_module.network[:3]
            self.unfreeze_and_add_param_group(layers, optimizer, lr=2e-3 / epoch, train_bn=False)


class _Thawed(_Digits):
    """Fine-tunes layer by layer."""

    def configure_callbacks(self) -> Any:
        return [_Gradual()]

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=4e-3)


def _gradual(seed: int, return_dict: bool) -> TrainingSetup:
    """A network for the digits below five is tuned to all ten. Its layers are thawed in epochs two and four."""
    images, labels = mixed_digits(seed)
    known = labels[:1400] < 5
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(25):
        optimizer.zero_grad()
        functional.cross_entropy(network(images[:1400][known]), labels[:1400][known]).backward()
        optimizer.step()
    optimizer.zero_grad()
    nn.init.zeros_(network[8].weight)  # pyright: ignore[reportArgumentType]
    return TrainingSetup(_Thawed(network, return_dict), *digit_loaders(seed, 32), {"max_epochs": 6})


class _Equilibrium(nn.Module):
    """Finds the fixed point of a layer without gradients and applies the layer once more with them."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inject = nn.Linear(inputs, width)
        self.recur = nn.utils.parametrizations.spectral_norm(nn.Linear(width, width, bias=False))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        offset = self.inject(inputs)
        with torch.no_grad():
            state = torch.zeros_like(offset)
            for _ in range(25):
                state = torch.tanh(0.9 * self.recur(state) + offset)
        return torch.tanh(0.9 * self.recur(state) + offset)


class _FixedPoint(_Digits):
    """Trains an equilibrium layer."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def _fixed_point(seed: int, return_dict: bool) -> TrainingSetup:
    """The same layer is applied twenty-six times, and the gradient flows through the last one only."""
    network = nn.Sequential(nn.Flatten(), _Equilibrium(64, 64), nn.Linear(64, 10))
    return TrainingSetup(_FixedPoint(network, return_dict), *digit_loaders(seed, 32), {"max_epochs": 4})


class _Goodness(nn.Module):
    """A layer whose squared activity distinguishes right labels from wrong ones."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(inputs / (inputs.norm(dim=1, keepdim=True) + 1e-4) * 4))


class _ForwardForward(pl.LightningModule):
    """Layers are trained one by one with a loss and an optimizer each, without a backward pass through the network."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.layers = nn.ModuleList([_Goodness(74, 200), _Goodness(200, 200)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        activity = []
        for label in range(10):
            states = self.join(images, torch.full((len(images),), label))
            total = torch.zeros(len(images))
            for layer in self.layers:
                states = layer(states)
                total = total + states.square().mean(1)
            activity.append(total)
        return torch.stack(activity, 1)

    @staticmethod
    def join(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Writes the labels next to the pixels."""
        return torch.cat([images.flatten(1), 2.0 * functional.one_hot(labels, 10)], 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        wrong = (labels + torch.randint(1, 10, labels.shape)) % 10
        states = torch.cat([self.join(images, labels), self.join(images, wrong)])
        signs = torch.cat([torch.ones(len(images)), -torch.ones(len(images))])
        optimizers: Any = self.optimizers()
        losses = []
        for layer, optimizer in zip(self.layers, optimizers, strict=True):
            states = layer(states.detach())
            loss = functional.softplus(-signs * (states.square().mean(1) - 2)).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        return step_output(self.return_dict, torch.stack(losses).sum())

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(layer.parameters(), lr=1e-2) for layer in self.layers]


def _layer_by_layer(seed: int, return_dict: bool) -> TrainingSetup:
    """No gradient flows from one layer to another, and there is no output layer."""
    train, validation = digit_loaders(seed, 32)
    return TrainingSetup(_ForwardForward(return_dict), train, validation, {"max_epochs": 15, "limit_val_batches": 0})


class _Evolution(pl.LightningModule):
    """Evolution strategies: the gradient is estimated from perturbed networks and written to ``grad``."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.network = mlp(3, 16, 1, between=nn.Tanh)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        optimizer: Any = self.optimizers()
        weights = dict(self.network.named_parameters())

        def loss_of(perturbed: dict[str, torch.Tensor]) -> torch.Tensor:
            return functional.mse_loss(functional_call(self.network, perturbed, (inputs,)), target)

        with torch.no_grad():
            noise = {name: torch.randn(64, *weight.shape) for name, weight in weights.items()}
            noise = {name: torch.cat([each, -each]) for name, each in noise.items()}
            losses = vmap(loss_of)({name: weight + 0.05 * noise[name] for name, weight in weights.items()})
            scores = losses - losses.mean()
            for name, weight in weights.items():
                weight.grad = torch.tensordot(scores, noise[name], 1) / (len(scores) * 0.05)
            preds = self(inputs)
        optimizer.step()
        return step_output(self.return_dict, functional.mse_loss(preds, target), preds, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-2)


def _evolution(seed: int, return_dict: bool) -> TrainingSetup:
    """There is no backward pass: gradients are noisy estimates."""
    inputs = torch.randn(64 * 60, 3, generator=make_generator(seed))
    target = inputs[:, :1] - 0.7 * inputs[:, 1:2] + torch.tanh(2 * inputs[:, 2:])
    return TrainingSetup(_Evolution(return_dict), make_loader(64, inputs, target), None, {"max_epochs": 8})


class _Square(nn.Module):
    """Squares its input."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.square()


class _Clock(_Digits):
    """Learns addition of hours from some of the pairs, with squares as activation and strong decay."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pairs, sums = batch
        preds = self(pairs)
        return step_output(
            self.return_dict, 23 * functional.mse_loss(preds, functional.one_hot(sums, 23).float()), preds, sums
        )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 23 * functional.mse_loss(self(batch[0]), functional.one_hot(batch[1], 23).float()))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.4)


def _clock(seed: int, return_dict: bool) -> TrainingSetup:
    """Validation is no better than chance for a long time after training fits, and falls late."""
    hours = torch.cartesian_prod(torch.arange(23), torch.arange(23))
    order = torch.randperm(len(hours), generator=make_generator(seed))
    hours = hours[order]
    pairs = functional.one_hot(hours, 23).flatten(1).float()
    sums = hours.sum(1) % 23
    known = TensorDataset(pairs[:370], sums[:370])
    train: Any = DataLoader(known, batch_size=128, sampler=RandomSampler(known, True, 128 * 25))
    network = nn.Sequential(nn.Linear(46, 192, bias=False), _Square(), nn.Linear(192, 23, bias=False))
    held_out = make_loader(256, pairs[370:], sums[370:], shuffle=False)
    return TrainingSetup(_Clock(network, return_dict), train, held_out, {"max_epochs": 45})


PROGRAMS: list[Program] = [
    Program(
        "sharpness_aware_steps_with_two_backward_passes",
        "convolutional",
        _sharpness,
        frozenset(),
        accuracy_above(0.85),
        "https://arxiv.org/abs/2010.01412",
    ),
    Program(
        "subnetwork_is_searched_in_random_weights",
        "dense",
        _searched,
        frozenset(),
        all_of(accuracy_above(0.85), _weights_stay),
        "https://arxiv.org/abs/1911.13299",
    ),
    Program(
        "layers_are_thawed_from_the_last_to_the_first",
        "convolutional",
        _gradual,
        frozenset(),
        accuracy_above(0.9),
        "https://arxiv.org/abs/1801.06146",
    ),
    Program(
        "equilibrium_with_a_gradient_through_one_step",
        "dense",
        _fixed_point,
        frozenset(),
        accuracy_above(0.9),
        "https://arxiv.org/abs/2103.12803",
    ),
    Program(
        "layers_learn_one_by_one_from_right_and_wrong_labels",
        "dense",
        _layer_by_layer,
        frozenset(),
        accuracy_above(0.85),
        "https://arxiv.org/abs/2212.13345",
    ),
    Program(
        "gradients_are_estimated_by_evolution_strategies",
        "regression",
        _evolution,
        frozenset(),
        all_of(ran_to_end, ends_below(0.1)),
        "https://arxiv.org/abs/1703.03864",
    ),
    Program(
        "hours_are_added_after_they_were_known_by_heart",
        "dense",
        _clock,
        frozenset(),
        accuracy_above(0.9),
        "https://arxiv.org/abs/2301.02679",
    ),
]
