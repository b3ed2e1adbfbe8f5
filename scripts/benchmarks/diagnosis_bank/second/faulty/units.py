"""Gradients that vanish or explode, and units that are dead or saturated."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.faulty.datasets import clusters, make_generator, make_loader, sentences, stripes, waves
from diagnosis_bank.second.faulty.measures import (
    StepOutputModule,
    accuracy,
    entropy,
    has_changed,
    is_no_better_than_constant,
    outputs,
    training_tensors,
    variance,
)
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam

from stormproof.finding import Problem


def _sigmoids(seed: int, return_dict: bool, depth: int = 12) -> TrainingSetup:
    """Twelve sigmoid layers with SGD: the first layers do not learn."""
    layers: list[nn.Module] = [nn.Linear(10, 24), nn.Sigmoid()]
    for _ in range(depth - 1):
        layers += [nn.Linear(24, 24), nn.Sigmoid()]
    network = nn.Sequential(*layers, nn.Linear(24, 4))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda ps: SGD(ps, lr=0.1, momentum=0.9))
    return TrainingSetup(module, make_loader(*clusters(seed, 640), batch=16, seed=seed))


class _Narrow(StepOutputModule):
    """Deep tanh convolutions with AlexNet's initialization."""

    def __init__(self, return_dict: bool, deviation: float) -> None:
        super().__init__(return_dict)
        self.convolutions = nn.ModuleList([nn.Conv2d(1 if i == 0 else 8, 8, 3, padding=1) for i in range(9)])
        self.classify = nn.Linear(8, 4)
        for convolution in self.convolutions:
            nn.init.normal_(cast("Any", convolution).weight, std=deviation)
            nn.init.zeros_(cast("Any", convolution).bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for index, convolution in enumerate(self.convolutions):
            image = torch.tanh(convolution(image))
            if index == 4:
                image = functional.max_pool2d(image, 2)
        return self.classify(image.amax((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, label = batch
        logits = self(image)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.05, momentum=0.9)


def _narrow(seed: int, return_dict: bool, deviation: float = 0.01) -> TrainingSetup:
    """Nine convolutions with weights of deviation 0.01 and no norm: signal and gradient vanish."""
    return TrainingSetup(_Narrow(return_dict, deviation), make_loader(*stripes(seed, 480), batch=16, seed=seed))


class _Stacked(StepOutputModule):
    """Ten stacked recurrent layers."""

    def __init__(self, return_dict: bool, depth: int) -> None:
        super().__init__(return_dict)
        self.rnn = nn.ModuleList([nn.GRU(1 if i == 0 else 12, 12, batch_first=True) for i in range(depth)])
        self.head = nn.Linear(12, 1)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        for layer in self.rnn:
            wave, _ = layer(wave)
        return self.head(wave[:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, after = batch
        preds = self(wave)
        return self.step_output(functional.l1_loss(preds, after), preds, after)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


def _stacked(seed: int, return_dict: bool, depth: int = 8) -> TrainingSetup:
    """Eight stacked GRUs without skip connections: the lower ones receive almost no gradient."""
    return TrainingSetup(_Stacked(return_dict, depth), make_loader(*waves(seed, 400, length=8), batch=16, seed=seed))


def _normal(network: nn.Module, deviation: float) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=deviation)
    return network


def _unscaled(seed: int, return_dict: bool, deviation: float = 1.0) -> TrainingSetup:
    """Unscaled torch.randn weights in six wide layers: outputs and gradients in the millions."""
    layers: list[nn.Module] = [nn.Linear(10, 64), nn.ReLU()]
    for _ in range(5):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    network = _normal(nn.Sequential(*layers, nn.Linear(64, 4)), deviation)
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda ps: Adam(ps, lr=1e-3))
    return TrainingSetup(module, make_loader(*clusters(seed, 640), batch=16, seed=seed))


class _Recurrent(StepOutputModule):
    """A manual recurrent network with ReLU and a large recurrent matrix."""

    def __init__(self, return_dict: bool, gain: float) -> None:
        super().__init__(return_dict)
        self.inward = nn.Linear(1, 24)
        self.recurrent = nn.Linear(24, 24, bias=False)
        self.outward = nn.Linear(24, 1)
        nn.init.orthogonal_(self.recurrent.weight, gain=gain)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(len(wave), 24)
        for step in range(wave.shape[1]):
            state = functional.leaky_relu(self.inward(wave[:, step]) + self.recurrent(state), 0.3)
        return self.outward(state)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, after = batch
        preds = self(wave)
        return self.step_output(functional.mse_loss(preds, after), preds, after)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=1e-3)


def _recurrent(seed: int, return_dict: bool, gain: float = 2.2) -> TrainingSetup:
    """A recurrence that more than doubles the state at each of thirty steps, without clipping."""
    return TrainingSetup(_Recurrent(return_dict, gain), make_loader(*waves(seed, 480, length=30), batch=16, seed=seed))


class _Siamese(StepOutputModule):
    """Contrastive learning of images."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.embed = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.Linear(200, 32),
            nn.LeakyReLU(),
            nn.Linear(32, 8),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.embed(image)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, label = batch
        points = self(image)
        apart = (points.unsqueeze(0) - points.unsqueeze(1)).pow(2).sum(-1)
        alike = (label.unsqueeze(0) == label.unsqueeze(1)).float()
        loss = (alike * apart).sum() / alike.sum() - ((1 - alike) * apart).sum() / (1 - alike).sum()
        return self.step_output(loss, points, label)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.5)


def _siamese(seed: int, return_dict: bool) -> TrainingSetup:
    """A contrastive loss without a margin: distances grow without limit."""
    return TrainingSetup(_Siamese(return_dict), make_loader(*stripes(seed, 640), batch=16, seed=seed))


class _Prior(StepOutputModule):
    """A detector of one of four kinds of stripes, whose bias starts at a prior of 1 in 100."""

    def __init__(self, return_dict: bool, everywhere: bool) -> None:
        super().__init__(return_dict)
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 12, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
        )
        self.score = nn.Linear(48, 1)
        for module in self.modules() if everywhere else [self.score]:
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.constant_(cast("torch.Tensor", module.bias), -math.log(99.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.score(self.body(image)).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, label = batch
        logits, target = self(image), (label == 0).float()
        return self.step_output(functional.binary_cross_entropy_with_logits(logits, target), logits, target)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=3e-3)


def _prior(seed: int, return_dict: bool, everywhere: bool = True) -> TrainingSetup:
    """The prior bias of the focal loss is set in all layers instead of the last one: all ReLUs are dead."""
    return TrainingSetup(_Prior(return_dict, everywhere), make_loader(*stripes(seed, 640), batch=16, seed=seed))


def _dying(seed: int, return_dict: bool, rate: float = 0.02) -> TrainingSetup:
    """A ReLU regression of large targets at a rate that kills its units."""
    x = torch.randn(800, 6, generator=make_generator(seed)).abs()
    y = torch.sin(1.5 * x[:, 0]) + 0.7 * x[:, 1] - 0.4 * x[:, 2] * x[:, 3]
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    module = Supervised(network, nn.MSELoss(), return_dict, lambda ps: SGD(ps, lr=rate, momentum=0.9))
    return TrainingSetup(module, make_loader(x, 20 + 3 * y.unsqueeze(1), batch=20, seed=seed))


class _Spectrum(StepOutputModule):
    """Sounds in decibels below the loudest, with convolutions over time."""

    def __init__(self, return_dict: bool, low: float) -> None:
        super().__init__(return_dict)
        self.layers = nn.Sequential(nn.Conv1d(8, 16, 3), nn.ReLU(), nn.Conv1d(16, 16, 3), nn.ReLU())
        self.classify = nn.Linear(16, 4)
        for module in self.layers:
            if isinstance(module, nn.Conv1d):
                nn.init.uniform_(module.weight, low, 0.3)

    def forward(self, decibels: torch.Tensor) -> torch.Tensor:
        return self.classify(self.layers(decibels).mean(-1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        decibels, label = batch
        logits = self(decibels)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=5e-3)


def _spectrum(seed: int, return_dict: bool, low: float = 0.0) -> TrainingSetup:
    """Weights from uniform_(0, 0.3) on negative decibels: all ReLUs are dead."""
    rng = make_generator(seed)
    label = torch.randint(4, (640,), generator=rng)
    loud = torch.nn.functional.one_hot(label, 4).repeat_interleave(2, 1).float().unsqueeze(-1)
    decibels = -2.0 + 1.2 * loud - 0.5 * torch.rand(640, 8, 16, generator=rng)
    return TrainingSetup(_Spectrum(return_dict, low), make_loader(decibels, label, batch=16, seed=seed))


def _wide(seed: int, return_dict: bool, deviation: float = 2.0) -> TrainingSetup:
    """Weights of deviation 2 before each tanh: almost all units are saturated."""
    x, label = clusters(seed, 640, features=20, classes=6, noise=1.5)
    network = nn.Sequential(
        nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 6)
    )
    for layer in (network[0], network[2], network[4]):
        nn.init.normal_(cast("nn.Linear", layer).weight, std=deviation)
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda ps: SGD(ps, lr=0.03))
    return TrainingSetup(module, make_loader(x, label, batch=16, seed=seed))


class _Gated(StepOutputModule):
    """Counts words with a gate that is a sigmoid of their sum."""

    def __init__(self, return_dict: bool, scale: float) -> None:
        super().__init__(return_dict)
        self.embedding = nn.Embedding(40, 32, padding_idx=0)
        self.gate = nn.Linear(32, 32)
        self.classify = nn.Linear(32, 3)
        self.scale = scale

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        total = self.embedding(tokens).sum(1) * self.scale
        return self.classify(torch.sigmoid(self.gate(total)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, label = batch
        logits = self(tokens)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.5)


def _gated(seed: int, return_dict: bool, scale: float = 32.0) -> TrainingSetup:
    """Embeddings multiplied by their dimension instead of its root, before a sigmoid: saturated gates."""
    return TrainingSetup(_Gated(return_dict, scale), make_loader(*sentences(seed, 640), batch=16, seed=seed))


def _shut(outcome: Outcome) -> bool:
    """Returns True if the outputs are constant because of dead units."""
    return float(outputs(outcome, training_tensors(outcome)[0]).std(0).max()) < 1e-3


def _flat(outcome: Outcome, layer: Any, at: float) -> bool:
    """Returns True if almost all outputs of the activation of a layer are saturated."""
    layer_outputs: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: layer_outputs.append(output))
    outputs(outcome, training_tensors(outcome)[0])
    handle.remove()
    return float((layer_outputs[0].abs() > at).float().mean()) > 0.8


PROGRAMS = [
    Program(
        "twelve_sigmoids",
        "dense",
        _sigmoids,
        frozenset({Problem.VANISHING_GRADIENTS}),
        lambda outcome: (
            is_no_better_than_constant(outcome, entropy(training_tensors(outcome)[1]), 0.95)
            and has_changed(outcome, "network.0.") < 0.02
        ),
        "https://github.com/phlippe/uvadlc_notebooks/issues/119",
    ),
    Program(
        "convolutions_of_deviation_a_hundredth",
        "convolutional",
        _narrow,
        frozenset({Problem.VANISHING_GRADIENTS}),
        lambda outcome: (
            is_no_better_than_constant(outcome, entropy(training_tensors(outcome)[1]), 0.95)
            and has_changed(outcome, "convolutions.0.") < 0.02
        ),
        "https://github.com/SilasMarvin/dnns-from-scratch-in-zig/pull/7",
    ),
    Program(
        "eight_stacked_grus",
        "sequence",
        _stacked,
        frozenset({Problem.VANISHING_GRADIENTS}),
        lambda outcome: outcome.mean_loss(15) > 0.85 * outcome.first_loss() and has_changed(outcome, "rnn.0.") < 0.01,
        "https://github.com/state-spaces/mamba/issues/527",
    ),
    Program(
        "unscaled_randn_weights",
        "dense",
        _unscaled,
        frozenset({Problem.EXPLODING_GRADIENTS}),
        lambda outcome: (
            outcome.losses[0] > 100 and is_no_better_than_constant(outcome, entropy(training_tensors(outcome)[1]))
        ),
        "https://github.com/SilasMarvin/dnns-from-scratch-in-zig/pull/7",
    ),
    Program(
        "recurrence_that_doubles",
        "sequence",
        _recurrent,
        frozenset({Problem.EXPLODING_GRADIENTS}),
        lambda outcome: is_no_better_than_constant(outcome, variance(training_tensors(outcome)[1]), 5.0),
        "https://github.com/horenbergerb/BernoulliDiffusion/issues/15",
    ),
    Program(
        "contrastive_without_margin",
        "convolutional",
        _siamese,
        frozenset({Problem.EXPLODING_GRADIENTS, Problem.NON_FINITE}),
        lambda outcome: not outcome.mean_loss() > -1e6,
        "https://github.com/omoindrot/tensorflow-triplet-loss/issues/14",
    ),
    Program(
        "prior_bias_everywhere",
        "convolutional",
        _prior,
        frozenset({Problem.DEAD_UNITS}),
        _shut,
        "https://discuss.pytorch.org/t/cross-entropy-loss-is-not-decreasing/43814/16",
    ),
    Program(
        "relus_killed_by_far_targets",
        "regression",
        _dying,
        frozenset({Problem.DEAD_UNITS, Problem.LEARNING_RATE_TOO_HIGH}),
        _shut,
        "https://deepai.org/publication/the-effect-of-target-normalization-and-momentum-on-dying-relu",
    ),
    Program(
        "positive_weights_on_decibels",
        "sequence",
        _spectrum,
        frozenset({Problem.DEAD_UNITS}),
        _shut,
        "https://deeplearning.jonwalls.dev/common-problems/gradient-flow/dying-relu",
    ),
    Program(
        "tanh_with_weights_of_deviation_two",
        "dense",
        _wide,
        frozenset({Problem.SATURATED_UNITS}),
        lambda outcome: _flat(outcome, cast("Any", outcome.after).network[1], 0.99) and accuracy(outcome) < 0.8,
        "https://github.com/depthfirstlearning/depthfirstlearning.com/pull/34",
    ),
    Program(
        "gates_shut_by_large_embeddings",
        "sequence",
        _gated,
        frozenset({Problem.SATURATED_UNITS}),
        lambda outcome: outcome.mean_loss(30) > 0.3,
        "https://github.com/torch/optim/issues/164",
    ),
]
