"""Trains small networks that differ in their seed in one batched computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from stormproof_train.activations import Activation
from stormproof_train.data.digits import Digits
from stormproof_train.data.mnist1d import MNIST1D
from stormproof_train.initialization import auto, orthogonal
from stormproof_train.models import MLP

BATCH = 64
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Data = tuple[torch.Tensor, torch.Tensor]
"""Inputs (seeds, samples, …) and targets (seeds, samples, …)."""


@dataclass(frozen=True)
class TrainedNetworks:
    """Networks after training. Losses and gradient norms are ``(seeds, steps)``, on the batch of each step."""

    networks: Sequence[nn.Module]
    parameters: dict[str, torch.Tensor]
    losses: torch.Tensor
    gradient_norms: torch.Tensor

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns outputs ``(seeds, samples, outputs)`` for inputs ``(seeds, samples, …)``, one network per seed."""
        with torch.no_grad():
            return run_networks(self.networks[0], self.parameters, inputs)

    def each(self) -> list[nn.Module]:
        """Returns the networks with their trained weights."""
        for seed, network in enumerate(self.networks):
            network.load_state_dict({name: value[seed].detach() for name, value in self.parameters.items()})
        return list(self.networks)

    def accuracy(self, data: Data) -> torch.Tensor:
        """Returns the accuracy, ``(seeds,)``."""
        return (self.predict(data[0]).argmax(2) == data[1]).double().mean(1)


def run_networks(network: nn.Module, parameters: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    return vmap(lambda own_parameters, x: functional_call(network, own_parameters, (x,)))(parameters, inputs)


def hidden_activations(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Returns the outputs of all activations of a multilayer perceptron, ``(samples, units)``, layer by layer."""
    outputs, signal = [], inputs
    with torch.no_grad():
        for layer in list(network.children())[:-1]:
            signal = layer(signal)
            if not isinstance(layer, nn.Flatten | nn.Linear):
                outputs.append(signal)
    return torch.cat(outputs, 1)


def make_mlps(
    seeds: int,
    activation: Activation,
    shape: Sequence[int],
    outputs: int,
    width: int,
    depth: int,
    initialization: str = "auto",
) -> list[nn.Module]:
    """Returns one multilayer perceptron per seed."""
    networks: list[nn.Module] = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        network = MLP(shape, outputs, activation, width=width, depth=depth)
        if initialization != "torch":
            {"auto": auto, "orthogonal": orthogonal}[initialization](network, activation, shape)
        networks.append(network)
    return networks


def train(
    networks: Sequence[nn.Module],
    data: Data,
    steps: int,
    lr: float = 1e-3,
    momentum: float | None = None,
    loss: Loss = F.cross_entropy,
) -> TrainedNetworks:
    """Trains with Adam, or with SGD if a momentum is given. Each network and step has its own batch of 64."""
    parameters, _ = stack_module_state(list(networks))
    leaves = list(parameters.values())
    optimizer = torch.optim.Adam(leaves, lr=lr) if momentum is None else torch.optim.SGD(leaves, lr, momentum)
    inputs, targets = data
    rows = torch.arange(len(networks))[:, None]
    generator = torch.Generator().manual_seed(0)
    losses, norms = [], []
    for _ in range(steps):
        chosen = torch.randint(inputs.shape[1], (len(networks), BATCH), generator=generator)
        batch_losses = vmap(loss)(run_networks(networks[0], parameters, inputs[rows, chosen]), targets[rows, chosen])
        optimizer.zero_grad()
        batch_losses.sum().backward()  # the loss of a network does not depend on the others
        norms.append(sum(leaf.grad.flatten(1).square().sum(1) for leaf in leaves if leaf.grad is not None))
        losses.append(batch_losses.detach())
        optimizer.step()
    return TrainedNetworks(networks, parameters, torch.stack(losses, 1), torch.stack(norms, 1).sqrt())


@cache
def load_digits(seeds: int) -> tuple[Data, Data]:
    """Returns training and test splits of the digits, one pair per seed."""
    splits = [_load_digits(seed) for seed in range(seeds)]
    return _stack_splits([training for training, _ in splits]), _stack_splits([test for _, test in splits])


@cache
def _load_digits(seed: int) -> tuple[Data, Data]:
    data = Digits(seed=seed)
    return data.load()[0], data.load_test()


@cache
def load_mnist1d(seeds: int) -> tuple[Data, Data]:
    """Returns the training and test split of MNIST-1D, equal for all seeds."""
    data = MNIST1D()
    return _stack_splits([data.load()[0]] * seeds), _stack_splits([data.load_test()] * seeds)


def _stack_splits(splits: Sequence[Data]) -> Data:
    return torch.stack([inputs for inputs, _ in splits]), torch.stack([targets for _, targets in splits])
