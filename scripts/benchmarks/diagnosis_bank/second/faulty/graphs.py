"""Layers that receive no gradient or do not change."""

from __future__ import annotations

from typing import Any, cast

import torch
from diagnosis_bank.program import Program, TrainingSetup
from diagnosis_bank.second.faulty.datasets import (
    clusters,
    discs,
    make_generator,
    make_loader,
    sentences,
    surface,
    waves,
)
from diagnosis_bank.second.faulty.measures import StepOutputModule, has_changed
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam

from stormproof.finding import Problem


class _Codebook(StepOutputModule):
    """A VQ-VAE on images."""

    def __init__(self, return_dict: bool, through: bool) -> None:
        super().__init__(return_dict)
        self.through = through
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.codes = nn.Embedding(16, 6)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(6, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        latent = self.encoder(image).permute(0, 2, 3, 1)
        nearest = torch.cdist(latent.flatten(0, 2), self.codes.weight).argmin(1)
        quantized = self.codes(nearest).view(latent.shape)
        if self.through:
            quantized = latent + (quantized - latent).detach()
        return self.decoder(quantized.permute(0, 3, 1, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, mask = batch
        rebuilt = self(image)
        return self.step_output(functional.mse_loss(rebuilt, mask), rebuilt, mask)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=3e-3)


def _codebook(seed: int, return_dict: bool) -> TrainingSetup:
    """A VQ-VAE without the straight-through estimator: argmin blocks the gradient to the encoder."""
    return TrainingSetup(_Codebook(return_dict, through=False), make_loader(*discs(seed, 480), batch=16, seed=seed))


class _Reader(StepOutputModule):
    """Classifies sentences by the last state of a recurrent network."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.embedding = nn.Embedding(40, 24, padding_idx=0)
        self.reader = nn.LSTM(24, 24, batch_first=True, bidirectional=True)
        self.classify = nn.Sequential(nn.Linear(48, 24), nn.GELU(), nn.Linear(24, 3))

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            states, _ = self.reader(self.embedding(tokens))
        return states.amax(1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.classify(self.read(tokens))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, label = batch
        logits = self(tokens)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=3e-3)


def _reader(seed: int, return_dict: bool) -> TrainingSetup:
    """The encoding is in a no_grad block that was meant for inference."""
    return TrainingSetup(_Reader(return_dict), make_loader(*sentences(seed, 480), batch=16, seed=seed))


class _Mixed(StepOutputModule):
    """Combines learned features with counts, through numpy."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.features = nn.Sequential(nn.Linear(10, 32), nn.ReLU())
        self.norm = nn.LayerNorm(32)
        self.classify = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.features(x).detach().numpy()
        hidden = hidden / (1e-6 + hidden.max(axis=1, keepdims=True))
        return self.classify(self.norm(torch.from_numpy(hidden)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, label = batch
        logits = self(x)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


def _numpy(seed: int, return_dict: bool) -> TrainingSetup:
    """Hidden features pass through numpy for an operation that torch also has."""
    return TrainingSetup(_Mixed(return_dict), make_loader(*clusters(seed, 640, noise=1.0), batch=16, seed=seed))


class _Stars(StepOutputModule):
    """Predicts ratings of 1 to 5 stars, rounded for display."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.round(self.net(x).squeeze(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, stars = batch
        preds = self(x)
        return self.step_output(functional.mse_loss(preds, stars), preds, stars)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=5e-3)


def _stars(seed: int, return_dict: bool) -> TrainingSetup:
    """Rounding to whole stars in forward, whose gradient is zero."""
    x, y = surface(seed, 640)
    return TrainingSetup(_Stars(return_dict), make_loader(x, (3 + 1.2 * y).round().clamp(1, 5), batch=16, seed=seed))


class _Pretrained(StepOutputModule):
    """Starts from pretrained word vectors."""

    def __init__(self, return_dict: bool, vectors: torch.Tensor) -> None:
        super().__init__(return_dict)
        self.embedding = nn.Embedding(40, 16, padding_idx=0)
        self.convolution = nn.Conv1d(16, 24, 3, padding=1)
        self.classify = nn.Linear(24, 3)
        self.pretrained = vectors
        self.load()

    def load(self) -> None:
        with torch.no_grad():
            self.embedding.weight.copy_(self.pretrained)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.load()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.convolution(self.embedding(tokens).transpose(1, 2))
        return self.classify(functional.relu(hidden).amax(2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, label = batch
        logits = self(tokens)
        return self.step_output(functional.cross_entropy(logits, label), logits, label)

    def on_train_epoch_end(self) -> None:
        self.load()

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=3e-3)


def _pretrained(seed: int, return_dict: bool) -> TrainingSetup:
    """Copies pretrained vectors before each batch instead of once, which undoes what was learned."""
    vectors = 0.5 * torch.randn(40, 16, generator=make_generator(seed))
    vectors[0] = 0
    return TrainingSetup(_Pretrained(return_dict, vectors), make_loader(*sentences(seed, 480), batch=16, seed=seed))


class _Half(StepOutputModule):
    """All weights are bfloat16. The first ones have a fixed size and a random sign."""

    def __init__(self, return_dict: bool, dtype: torch.dtype) -> None:
        super().__init__(return_dict)
        self.kind = dtype
        self.inward = nn.Linear(20, 64, bias=False)
        self.outward = nn.Linear(64, 1, bias=False)
        with torch.no_grad():
            self.inward.weight.copy_(0.4 * torch.randn(64, 20).sign())
        self.to(dtype)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return self.outward(torch.tanh(self.inward(window.squeeze(-1).to(self.kind))))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        window, after = batch
        preds = self(window).float()
        return self.step_output(functional.mse_loss(preds, after), preds, after)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=1e-3)


def _half(seed: int, return_dict: bool, dtype: torch.dtype = torch.bfloat16) -> TrainingSetup:
    """Weights in bfloat16 without a float32 copy: updates of the first layer are rounded away."""
    return TrainingSetup(
        _Half(return_dict, dtype), make_loader(*waves(seed, 1200), batch=12, seed=seed), trainer={"max_epochs": 4}
    )


class _Averaged(StepOutputModule):
    """A manual moving average of the weights."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__(return_dict)
        self.net = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 1))
        self.average = [parameter.detach().clone() for parameter in self.net.parameters()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        preds = self(x)
        return self.step_output(functional.mse_loss(preds, y), preds, y)

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for average, parameter in zip(self.average, self.net.parameters(), strict=True):
            average.lerp_(parameter, 1e-4)
            parameter.copy_(average)

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), lr=3e-3)


def _averaged(seed: int, return_dict: bool) -> TrainingSetup:
    """Copies the moving average for the validation into the weights after each batch."""
    x, y = surface(seed, 800)
    return TrainingSetup(_Averaged(return_dict), make_loader(x, y.unsqueeze(1), batch=20, seed=seed))


_CUT = frozenset({Problem.NO_GRADIENT})

PROGRAMS = [
    Program(
        "codes_without_straight_through",
        "convolutional",
        _codebook,
        _CUT,
        lambda outcome: has_changed(outcome, "encoder") == 0 and has_changed(outcome, "decoder") > 0.01,
        "https://github.com/Biohub/esm/issues/92",
    ),
    Program(
        "encoder_trained_under_no_grad",
        "sequence",
        _reader,
        _CUT,
        lambda outcome: has_changed(outcome, "reader") == 0 and has_changed(outcome, "classify") > 0.01,
        "https://github.com/vturrisi/solo-learn/issues/135",
    ),
    Program(
        "features_by_way_of_numpy",
        "dense",
        _numpy,
        _CUT,
        lambda outcome: has_changed(outcome, "features") == 0 and has_changed(outcome, "classify") > 0.01,
        "https://github.com/pkuCactus/BDCN/issues/8",
    ),
    Program(
        "ratings_rounded_in_forward",
        "regression",
        _stars,
        frozenset({Problem.NO_GRADIENT, Problem.WEIGHTS_UNCHANGED}),
        lambda outcome: has_changed(outcome) == 0 and outcome.mean_loss(30) > 1,
        "https://github.com/rasbt/LLMs-from-scratch/issues/277",
    ),
    Program(
        "vectors_reloaded_each_batch",
        "sequence",
        _pretrained,
        frozenset({Problem.WEIGHTS_UNCHANGED}),
        lambda outcome: (
            has_changed(outcome, "embedding") == 0
            and bool(cast("Any", outcome.after).embedding.weight.grad.abs().sum() > 0)
        ),
        "https://github.com/adapter-hub/adapters/issues/260",
    ),
    Program(
        "updates_below_bfloat16",
        "sequence",
        _half,
        frozenset({Problem.WEIGHTS_UNCHANGED}),
        lambda outcome: has_changed(outcome, "inward") < 1e-4 and has_changed(outcome, "outward") > 0.01,
        "https://github.com/workofart/ml-by-hand/pull/85",
    ),
    Program(
        "average_copied_into_the_weights",
        "regression",
        _averaged,
        frozenset({Problem.WEIGHTS_UNCHANGED, Problem.LEARNING_RATE_TOO_LOW}),
        lambda outcome: has_changed(outcome) < 1e-3 and outcome.mean_loss(40) > 0.9 * outcome.first_loss(40),
        "https://github.com/huggingface/diffusers/issues/2321",
    ),
]
