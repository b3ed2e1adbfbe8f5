"""Layers, weights and losses that resemble faults."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from diagnosis_bank.third.healthy.datasets import (
    blobs,
    clusters,
    make_generator,
    make_loader,
    make_loaders,
    perceptron,
    teacher_scores,
    tones,
)
from diagnosis_bank.third.healthy.measures import (
    Check,
    all_of,
    explains_variance,
    fell_by,
    is_accurate,
    ran_to_end,
    validation_is_stable,
)
from torch import nn
from torch.nn import functional as fn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import orthogonal


def _third_of_the_units_silent_from_the_start(seed: int, return_dict: bool) -> TrainingSetup:
    """A third of the ReLUs are dead from the start. The others are sufficient."""
    inputs, labels = clusters(seed, 60 * 32 + 256, 10, 5, 0.8)
    network = perceptron(10, 96, 5)
    with torch.no_grad():
        network[0].bias[:32] = -15  # pyright: ignore[reportIndexIssue]
    train, validation = make_loaders(256, 32, inputs, labels)
    module = Supervised(network, fn.cross_entropy, return_dict, lambda params: torch.optim.SGD(params, lr=0.1))
    return TrainingSetup(module, train, validation)


def _no_bias_in_any_convolution(seed: int, return_dict: bool) -> TrainingSetup:
    """Convolutions and head without bias: the output of an empty image is zero, as it should be."""
    pictures, places = blobs(seed, 50 * 32 + 256, noise=0.1)
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, stride=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 2, bias=False),
    )
    train, validation = make_loaders(256, 32, pictures, places)
    module = Supervised(network, fn.mse_loss, return_dict, lambda params: torch.optim.RMSprop(params, lr=2e-3))
    return TrainingSetup(module, train, validation)


def _heavy_weights_with_layer_norm(seed: int, return_dict: bool) -> TrainingSetup:
    """Weights of deviation one, with norms of eight and more, each followed by layer norm."""
    source = make_generator(seed)
    inputs = torch.randn(60 * 32 + 300, 8, generator=source)
    target = teacher_scores(seed, inputs) + 0.2 * torch.randn(len(inputs), 1, generator=source)
    layers: list[nn.Module] = []
    for before in (8, 64):
        linear = nn.Linear(before, 64)
        nn.init.normal_(linear.weight, std=1.0)
        layers += [linear, nn.LayerNorm(64), nn.ReLU()]
    train, validation = make_loaders(300, 32, inputs, target)
    module = Supervised(
        nn.Sequential(*layers, nn.Linear(64, 1)), fn.mse_loss, return_dict, lambda p: torch.optim.Adam(p, lr=2e-3)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 3})


class _Read(nn.Module):
    """An LSTM over word embeddings, with dropout of 0.7 before and after it, and a mean over the text."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(500, 24)
        self.drop = nn.Dropout(0.7)
        self.lstm = nn.LSTM(24, 24, batch_first=True)
        self.verdict = nn.Linear(24, 1)

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.drop(self.embedding(texts)))
        return self.verdict(self.drop(states.mean(1)))


def _reviews_with_seven_tenths_dropped(seed: int, return_dict: bool) -> TrainingSetup:
    """Dropout of 0.7 twice: the training loss is far above the validation loss. Some words never occur."""
    source = make_generator(seed)
    texts = torch.randint(200, (60 * 32 + 300, 8), generator=source)
    kind = torch.randn(200, generator=source)
    verdicts = (kind[texts].mean(1, keepdim=True) > kind.mean()).float()
    train, validation = make_loaders(300, 32, texts, verdicts)
    module = Supervised(
        _Read(), fn.binary_cross_entropy_with_logits, return_dict, lambda params: torch.optim.Adam(params, lr=1e-2)
    )
    return TrainingSetup(module, train, validation, {"max_epochs": 5})


class _ReZero(nn.Module):
    """Attention blocks with gates that start at zero: at first, blocks have no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(4, 16)
        self.places = nn.Parameter(0.1 * torch.randn(8, 16))
        self.attention = nn.ModuleList([nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2)])
        self.mix = nn.ModuleList([perceptron(16, 32, 16, between=nn.GELU) for _ in range(2)])
        self.gates = nn.Parameter(torch.zeros(2, 2))
        self.head = nn.Linear(16, 3)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        states = self.lift(waves.unflatten(1, (8, 4))) + self.places
        for gate, attend, mix in zip(self.gates, self.attention, self.mix, strict=True):
            states = states + gate[0] * attend(states, states, states, need_weights=False)[0]
            states = states + gate[1] * mix(states)
        return self.head(states.amax(1))


def _gates_of_rezero_open_from_nothing(seed: int, return_dict: bool) -> TrainingSetup:
    """ReZero: in the first step, all weights in the blocks have a gradient of exactly zero."""
    waves, labels = tones(seed, 50 * 32 + 256, 32, 3, 0.4)
    train, validation = make_loaders(256, 32, waves, labels)
    module = Supervised(_ReZero(), fn.cross_entropy, return_dict, lambda params: torch.optim.AdamW(params, lr=3e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _pruned_to_a_third_and_trained_on(seed: int, return_dict: bool) -> TrainingSetup:
    """Two of three weights are pruned by masks before fine-tuning: they never change, as intended."""
    inputs, labels = clusters(seed, 60 * 24 + 240, 16, 4, 0.9)
    network = perceptron(16, 64, 32, 4)
    for layer in network:
        if isinstance(layer, nn.Linear):
            prune.l1_unstructured(layer, "weight", amount=0.66)
    train, validation = make_loaders(240, 24, inputs, labels)
    module = Supervised(
        network, fn.cross_entropy, return_dict, lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.5)
    )
    return TrainingSetup(module, train, validation)


class _Turning(nn.Module):
    """A recurrence whose matrix is orthogonal by a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(1, 16)
        self.turn = orthogonal(nn.Linear(16, 16, bias=False))
        self.leave = nn.Linear(16, 3)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        state, total = waves.new_zeros(len(waves), 16), 0.0
        for step in range(waves.shape[1]):
            state = torch.tanh(self.turn(state) + self.enter(waves[:, step : step + 1]))
            total = total + state.square()
        return self.leave(total)


def _recurrence_kept_orthogonal(seed: int, return_dict: bool) -> TrainingSetup:
    """The recurrent matrix is the exponential of a parameter that no forward pass uses directly."""
    waves, labels = tones(seed, 25 * 32 + 256, 16, 3, 0.3)
    train, validation = make_loaders(256, 32, waves, labels)
    module = Supervised(_Turning(), fn.cross_entropy, return_dict, lambda params: torch.optim.RMSprop(params, lr=5e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


def _bytes_of_sound_into_batch_norm(seed: int, return_dict: bool) -> TrainingSetup:
    """Sound as bytes from 0 to 255 into a batch norm with two sounds per batch, followed by a group norm."""
    waves, labels = tones(seed, 120 * 4 + 200, 32, 3, 0.3)
    raw = (128 + 60 * waves).clamp(0, 255).round().unsqueeze(1)
    network = nn.Sequential(
        nn.BatchNorm1d(1),
        nn.Conv1d(1, 12, 7, padding=3),
        nn.GroupNorm(3, 12),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    train, validation = make_loaders(200, 4, raw, labels)
    module = Supervised(network, fn.cross_entropy, return_dict, lambda params: torch.optim.Adam(params, lr=3e-3))
    return TrainingSetup(module, train, validation)


class _Cox(pl.LightningModule):
    """Risks with the partial likelihood: the loss depends only on the order within a batch."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.risk = perceptron(6, 24, 1, between=nn.SELU)

    def forward(self, patients: torch.Tensor) -> torch.Tensor:
        return self.risk(patients).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        patients, times, died = batch
        order = times.argsort(descending=True)
        risks = self(patients[order])
        loss = -((risks - risks.logcumsumexp(0)) * died[order]).sum() / died.sum().clamp_min(1)
        return {"loss": loss, "preds": risks, "target": times[order]} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _risks_by_the_partial_likelihood(seed: int, return_dict: bool) -> TrainingSetup:
    """Predictions are risks without a unit, targets are times: only their order must agree."""
    source = make_generator(seed)
    patients = torch.randn(40 * 48, 6, generator=source)
    hazard = torch.exp(1.5 * teacher_scores(seed, patients)[:, 0])
    times = -torch.log(torch.rand(len(hazard), generator=source).clamp_min(1e-6)) / hazard
    ends = 3 * torch.rand(len(hazard), generator=source)
    train = make_loader(48, patients, torch.minimum(times, ends), (times <= ends).float())
    return TrainingSetup(_Cox(return_dict), train, None, {"max_epochs": 4})


class _Skipping(pl.LightningModule):
    """Skips batches of images without an object by returning None."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.mask = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.PReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.mask(pictures)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pictures, masks = batch
        if masks.sum() == 0:
            return None
        logits = self(pictures)
        loss = fn.binary_cross_entropy_with_logits(logits, masks, pos_weight=torch.tensor(4.0))
        return {"loss": loss, "preds": logits, "target": masks} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def _batches_without_object_passed_over(seed: int, return_dict: bool) -> TrainingSetup:
    """Batches of two images, half of them empty: a quarter of the batches have no loss, as documented."""
    pictures, _ = blobs(seed, 200, noise=0.2)
    empty = torch.rand(200, generator=make_generator(seed + 3)) < 0.5
    clean, _ = blobs(seed, 200, noise=0.0)
    pictures[empty] -= clean[empty]
    masks = (clean > 0.5).float() * (~empty).float().view(-1, 1, 1, 1)
    return TrainingSetup(_Skipping(return_dict), make_loader(2, pictures, masks), None, {"max_epochs": 3})


def _silent(layer: str, low: float, high: float) -> Check:
    """Returns the share of the first hidden units that are inactive on all training inputs."""

    def check(outcome: Any) -> bool:
        if not ran_to_end(outcome):
            return False
        first = getattr(outcome.after.network, layer)
        awake = torch.cat([first(inputs) > 0 for inputs, _ in outcome.fit.train]).any(0)
        return low <= 1 - float(awake.double().mean()) <= high

    return check


PROGRAMS = [
    Program(
        "third_of_the_units_silent_from_the_start",
        "dense",
        _third_of_the_units_silent_from_the_start,
        frozenset(),
        all_of(is_accurate(0.85), _silent("0", 0.2, 0.45), validation_is_stable()),
        "https://tdwi.org/blogs/ai-101/2026/05/what-happens-when-parts-of-a-neural-network-stop-working.aspx",
    ),
    Program(
        "no_bias_in_any_convolution",
        "convolutional",
        _no_bias_in_any_convolution,
        frozenset(),
        all_of(explains_variance(0.8), validation_is_stable(0.1)),
        "https://discuss.pytorch.org/t/werid-training-loss-curve/8799",
    ),
    Program(
        "heavy_weights_with_layer_norm",
        "regression",
        _heavy_weights_with_layer_norm,
        frozenset(),
        all_of(explains_variance(0.6), validation_is_stable()),
        "https://arxiv.org/abs/1607.06450",
    ),
    Program(
        "reviews_with_seven_tenths_dropped",
        "sequence",
        _reviews_with_seven_tenths_dropped,
        frozenset(),
        all_of(is_accurate(0.72), validation_is_stable()),
        "https://kiwix.lema.org/stackoverflow.com_en_all_2023-11/questions/56663175/is-it-a-good-model-in-the-making-with-validation-loss-remaining-lower-than-tra",
    ),
    Program(
        "gates_of_rezero_open_from_nothing",
        "sequence",
        _gates_of_rezero_open_from_nothing,
        frozenset(),
        all_of(is_accurate(0.75), validation_is_stable(0.1)),
        "https://arxiv.org/abs/2003.04887",
    ),
    Program(
        "pruned_to_a_third_and_trained_on",
        "dense",
        _pruned_to_a_third_and_trained_on,
        frozenset(),
        all_of(is_accurate(0.85), validation_is_stable()),
        "https://docs.pytorch.org/tutorials/intermediate/pruning_tutorial.html",
    ),
    Program(
        "recurrence_kept_orthogonal",
        "sequence",
        _recurrence_kept_orthogonal,
        frozenset(),
        all_of(is_accurate(0.7), validation_is_stable(0.1)),
        "https://docs.pytorch.org/tutorials/intermediate/parametrizations.html",
    ),
    Program(
        "bytes_of_sound_into_batch_norm",
        "sequence",
        _bytes_of_sound_into_batch_norm,
        frozenset(),
        all_of(is_accurate(0.85), validation_is_stable(0.1)),
        "https://indiantechwarrior.com/why-does-the-loss-accuracy-fluctuate-during-the-training",
    ),
    Program(
        "risks_by_the_partial_likelihood",
        "regression",
        _risks_by_the_partial_likelihood,
        frozenset(),
        fell_by(0.12),
        "https://opensource.nibr.com/torchsurv/_autosummary/torchsurv.loss.cox.html",
    ),
    Program(
        "batches_without_object_passed_over",
        "convolutional",
        _batches_without_object_passed_over,
        frozenset(),
        fell_by(0.5),
        "https://github.com/Lightning-AI/pytorch-lightning/issues/3536",
    ),
]
