"""Healthy runs other than classification: regression, generation, self-supervision."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.held_out.datasets import (
    digit_images,
    digits,
    load_table,
    make_loader,
    repeated,
    seeded,
    signals,
    surface,
    waves,
)
from diagnosis_bank.held_out.measures import explained_variance, training_tensors
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

CONSTRUCTED = "constructed: a healthy training run"


class _Restarted(pl.LightningModule):
    """A GRU that forecasts, with a learning rate that restarts several times."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)
        self.return_dict = return_dict

    def forward(self, window: Tensor) -> Tensor:
        return self.head(self.gru(window)[1][-1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        window, following = batch
        preds = self(window)
        loss = functional.mse_loss(preds, following)
        return {"loss": loss, "preds": preds, "target": following} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        window, following = batch
        self.log("val_loss", functional.mse_loss(self(window), following))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        schedule = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=25, T_mult=2)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@seeded
def _restarts(seed: int, return_dict: bool) -> TrainingSetup:
    window, following = waves(seed, 1200)
    return TrainingSetup(
        _Restarted(return_dict),
        make_loader(window[:1000], following[:1000], 20, seed),
        make_loader(window[1000:], following[1000:], 100, seed, shuffle=False),
    )


@seeded
def _no_noise(seed: int, return_dict: bool) -> TrainingSetup:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(1280, 5, generator=generator)
    target = inputs @ torch.randn(5, 2, generator=generator) + 0.5
    return TrainingSetup(
        Supervised(nn.Linear(5, 2), nn.MSELoss(), return_dict, lambda parameters: torch.optim.SGD(parameters, lr=0.3)),
        make_loader(inputs, target, 32, seed),
        trainer={"max_epochs": 4},
    )


class _Adversaries(pl.LightningModule):
    """A generator and a critic of points on a line, with one optimizer each."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 2))
        self.critic = nn.Sequential(nn.Linear(2, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))
        self.return_dict = return_dict

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)

    def _judged(self, points: Tensor, real: bool) -> Tensor:
        score = self.critic(points)
        return functional.binary_cross_entropy_with_logits(score, torch.full_like(score, float(real)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        points, _ = batch
        optimizers: Any = self.optimizers()
        for_generator, for_critic = optimizers
        noise = torch.randn(len(points), 4)

        self.toggle_optimizer(for_generator)
        fooled = self._judged(self(noise), real=True)
        for_generator.zero_grad()
        self.manual_backward(fooled)
        for_generator.step()
        self.untoggle_optimizer(for_generator)

        self.toggle_optimizer(for_critic)
        loss = 0.5 * (self._judged(points, real=True) + self._judged(self(noise).detach(), real=False))
        for_critic.zero_grad()
        self.manual_backward(loss)
        for_critic.step()
        self.untoggle_optimizer(for_critic)
        return {"loss": loss} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=2e-3, betas=(0.5, 0.999)),
            torch.optim.Adam(self.critic.parameters(), lr=4e-3, betas=(0.5, 0.999)),
        ]


@seeded
def _adversaries(seed: int, return_dict: bool) -> TrainingSetup:
    generator = torch.Generator().manual_seed(seed)
    points = torch.tensor([2.0, -1.0]) + 0.5 * torch.randn(3200, 2, generator=generator)
    return TrainingSetup(
        _Adversaries(return_dict), make_loader(points, torch.zeros(3200), 64, seed), trainer={"max_epochs": 8}
    )


class _Contrastive(pl.LightningModule):
    """Contrastive learning with two views of a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Unflatten(1, (1, 40)),
            nn.Conv1d(1, 16, 5, stride=2),
            nn.ReLU(),
            nn.Conv1d(16, 16, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.projector = nn.Sequential(nn.Linear(128, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, signal: Tensor) -> Tensor:
        return functional.normalize(self.projector(self.encoder(signal)), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        signal, _ = batch
        first_view = self(signal + 0.6 * torch.randn_like(signal))
        second_view = self(signal + 0.6 * torch.randn_like(signal))
        return functional.cross_entropy(first_view @ second_view.T / 0.2, torch.arange(len(signal)))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@seeded
def _contrastive(seed: int, return_dict: bool) -> TrainingSetup:
    signal, kind = signals()
    return TrainingSetup(_Contrastive(), make_loader(signal, kind, 32, seed))


class _Masked(pl.LightningModule):
    """Fills in masked pixels, with tied encoder and decoder weights."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.inward = nn.Linear(64, 48)
        self.middle = nn.Linear(48, 48)
        self.offset = nn.Parameter(torch.zeros(64))
        self.return_dict = return_dict

    def forward(self, pixels: Tensor) -> Tensor:
        inner = functional.gelu(self.inward(pixels))
        inner = inner + functional.gelu(self.middle(inner))
        return functional.linear(inner, self.inward.weight.T, self.offset)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pixels, _ = batch
        hidden = torch.rand_like(pixels) < 0.25
        guess = self(pixels.masked_fill(hidden, 0.0))
        loss = (guess - pixels)[hidden].square().mean()
        return {"loss": loss, "preds": guess[hidden], "target": pixels[hidden]} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=6e-3)


@seeded
def _masked_pixels(seed: int, return_dict: bool) -> TrainingSetup:
    pixels, digit = digits()
    return TrainingSetup(_Masked(return_dict), make_loader(pixels, digit, 32, seed), trainer={"max_epochs": 5})


class _NextWord(nn.Module):
    """A language model whose last layer is its embedding."""

    def __init__(self, vocabulary: int = 24, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.Linear(width, vocabulary)
        self.decoder.weight = self.embedding.weight

    def forward(self, sentences: Tensor) -> Tensor:
        return self.decoder(self.gru(self.embedding(sentences))[0]).transpose(1, 2)


@seeded
def _tied_words(seed: int, return_dict: bool) -> TrainingSetup:
    generator = torch.Generator().manual_seed(seed)
    likely = torch.randint(24, (24, 3), generator=generator)
    tokens = [torch.randint(24, (1600,), generator=generator)]
    for _ in range(12):
        tokens.append(likely[tokens[-1], torch.randint(3, (1600,), generator=generator)])
    sentences = torch.stack(tokens, dim=1)
    return TrainingSetup(
        Supervised(
            _NextWord(), nn.CrossEntropyLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)
        ),
        make_loader(sentences[:, :-1], sentences[:, 1:].contiguous(), 32, seed),
    )


@seeded
def _summed_and_small(seed: int, return_dict: bool) -> TrainingSetup:
    inputs, target = surface(seed, 480, noise=0.2)
    network = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 1))
    return TrainingSetup(
        Supervised(
            network,
            nn.MSELoss(reduction="sum"),
            return_dict,
            lambda parameters: torch.optim.SGD(parameters, lr=5e-3),
        ),
        make_loader(inputs, target, 8, seed),
    )


@seeded
def _around_two_hundred(seed: int, return_dict: bool) -> TrainingSetup:
    inputs, height = surface(seed, 1920)
    pressure = 200 + 15 * height
    last = nn.Linear(32, 1)
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), last)
    nn.init.constant_(last.bias, pressure.mean().item())
    return TrainingSetup(
        Supervised(network, nn.HuberLoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-2)),
        make_loader(inputs, pressure, 32, seed),
        trainer={"max_epochs": 4},
    )


@seeded
def _little_to_know(seed: int, return_dict: bool) -> TrainingSetup:
    inputs, progress = load_table("diabetes")
    target = (progress.float().unsqueeze(1) - 152) / 77
    inputs, target = repeated(inputs[:, [0, 1, 3, 4, 9]], target, 2)
    return TrainingSetup(
        Supervised(
            nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)),
            nn.MSELoss(),
            return_dict,
            lambda parameters: torch.optim.SGD(parameters, lr=0.05),
        ),
        make_loader(inputs, target, 16, seed),
    )


class _TwoHands(pl.LightningModule):
    """An autoencoder of images with one optimizer for each half."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ELU(), nn.Conv2d(8, 4, 3, padding=1), nn.ELU()
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4, 8, 4, stride=2, padding=1), nn.ELU(), nn.Conv2d(8, 1, 3, padding=1)
        )
        self.return_dict = return_dict

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, _ = batch
        repeated_preds = self(images)
        loss = functional.mse_loss(repeated_preds, images)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return {"loss": loss, "preds": repeated_preds, "target": images} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.encoder.parameters(), lr=1e-2),
            torch.optim.RMSprop(self.decoder.parameters(), lr=3e-3),
        ]


@seeded
def _two_hands(seed: int, return_dict: bool) -> TrainingSetup:
    images, digit = digit_images()
    return TrainingSetup(_TwoHands(return_dict), make_loader(images, digit, 32, seed))


@seeded
def _slow_and_steady(seed: int, return_dict: bool) -> TrainingSetup:
    inputs, target = surface(seed, 1920)
    network = nn.Sequential(nn.Linear(6, 48), nn.Softplus(), nn.Linear(48, 1))
    return TrainingSetup(
        Supervised(network, nn.MSELoss(), return_dict, lambda parameters: torch.optim.Adam(parameters, lr=1e-3)),
        make_loader(inputs, target, 32, seed),
        trainer={"max_epochs": 10},
    )


def _hits_the_cloud(outcome: Outcome) -> bool:
    """Returns True if the generated points match the data: mean (2, -1), deviation 0.5."""
    with torch.no_grad():
        generated = outcome.after(torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)))
    off = (generated.mean(0) - torch.tensor([2.0, -1.0])).norm().item()
    return outcome.error is None and off < 0.5 and 0.1 < generated.std(0).min().item() < 1.0


def _fills_in(outcome: Outcome) -> bool:
    """Returns True if the predictions are far better than the mean of each pixel."""
    pixels, _ = training_tensors(outcome)
    return outcome.mean_loss() < 0.6 * pixels.var(0).mean().item()


def _copies(outcome: Outcome) -> bool:
    """Returns True if images of mean 0 and deviation 1 are reconstructed."""
    return outcome.error is None and outcome.mean_loss() < 0.25


PROGRAMS: list[Program] = [
    Program(
        "gru_whose_rate_is_restarted",
        "sequence",
        _restarts,
        frozenset(),
        lambda outcome: explained_variance(outcome) > 0.9 and outcome.validation[-1] < 0.1,
        CONSTRUCTED,
    ),
    Program(
        "linear_targets_without_noise",
        "regression",
        _no_noise,
        frozenset(),
        lambda outcome: outcome.mean_loss() < 1e-12,
        CONSTRUCTED,
    ),
    Program("generator_and_critic", "dense", _adversaries, frozenset(), _hits_the_cloud, CONSTRUCTED),
    Program(
        "two_views_of_a_signal_find_each_other",
        "sequence",
        _contrastive,
        frozenset(),
        lambda outcome: outcome.error is None and outcome.mean_loss() < 1.3,  # by chance it is ln 32, 3.5
        CONSTRUCTED,
    ),
    Program("masked_pixels_by_tied_weights", "dense", _masked_pixels, frozenset(), _fills_in, CONSTRUCTED),
    Program(
        "words_with_a_tied_embedding",
        "sequence",
        _tied_words,
        frozenset(),
        lambda outcome: outcome.mean_loss() < 1.5,  # by chance it is ln 24, 3.2; known, about ln 3
        CONSTRUCTED,
    ),
    Program(
        "loss_is_summed_and_the_rate_fits",
        "regression",
        _summed_and_small,
        frozenset(),
        lambda outcome: explained_variance(outcome) > 0.7,
        CONSTRUCTED,
    ),
    Program(
        "targets_around_two_hundred",
        "regression",
        _around_two_hundred,
        frozenset(),
        lambda outcome: explained_variance(outcome) > 0.8,
        CONSTRUCTED,
    ),
    Program(
        "little_can_be_known_of_the_targets",
        "regression",
        _little_to_know,
        frozenset(),
        lambda outcome: 0.1 < explained_variance(outcome) < 0.5,
        CONSTRUCTED,
    ),
    Program(
        "encoder_and_decoder_with_an_optimizer_each", "convolutional", _two_hands, frozenset(), _copies, CONSTRUCTED
    ),
    Program(
        "slow_and_steady",
        "regression",
        _slow_and_steady,
        frozenset(),
        lambda outcome: explained_variance(outcome) > 0.6,
        CONSTRUCTED,
    ),
]
