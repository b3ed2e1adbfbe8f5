"""Runs without human labels."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.third.healthy.datasets import (
    bars,
    blobs,
    make_generator,
    make_loader,
    make_loaders,
    perceptron,
)
from diagnosis_bank.third.healthy.measures import (
    all_of,
    began_above,
    explains_variance,
    fell_by,
    fell_to,
    has_changed,
    is_accurate,
    ran_to_end,
    validation_is_stable,
)
from torch import nn
from torch.nn import functional as fn


def _quarter_turns_of_pictures_predicted(seed: int, return_dict: bool) -> TrainingSetup:
    """Each image is rotated by a quarter turn or not, and the network predicts the rotation."""
    source = make_generator(seed)
    pictures, _ = blobs(seed, 60 * 32 + 256, noise=0.2)
    shade = torch.linspace(0, 1.5, 10).view(1, 1, 10, 1)
    pictures = pictures + shade
    turns = torch.randint(4, (len(pictures),), generator=source)
    turned = torch.stack([torch.rot90(p, int(k), (1, 2)) for p, k in zip(pictures, turns, strict=True)])
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 4)
    )
    train, validation = make_loaders(256, 32, turned, turns)
    module = Supervised(
        network, fn.cross_entropy, return_dict, lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9)
    )
    return TrainingSetup(module, train, validation)


class _Foretelling(pl.LightningModule):
    """Contrastive predictive coding: matches a past with its future in the batch."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.encode = nn.Conv1d(1, 12, 4, stride=4)
        self.context = nn.GRU(12, 16, batch_first=True)
        self.foretell = nn.Linear(16, 12, bias=False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        codes = self.encode(batch[0].unsqueeze(1)).transpose(1, 2)
        past, _ = self.context(codes[:, :-1])
        scores = self.foretell(past[:, -1]) @ codes[:, -1].T
        positive_index = torch.arange(len(scores), device=self.device)
        loss = fn.cross_entropy(scores, positive_index)
        return {"loss": loss, "preds": scores, "target": positive_index} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _futures_of_waves_distinguished(seed: int, return_dict: bool) -> TrainingSetup:
    """InfoNCE over a batch of 48: its loss starts at log 48 and falls as far as the future is predictable."""
    source = make_generator(seed)
    pace, start = 0.3 + 0.7 * torch.rand(1920, 1, generator=source), 6.28 * torch.rand(1920, 1, generator=source)
    series = torch.sin(pace * torch.arange(24) + start) + 0.1 * torch.randn(1920, 24, generator=source)
    return TrainingSetup(_Foretelling(return_dict), make_loader(48, series), None, {"max_epochs": 4})


class _VicReg(pl.LightningModule):
    """Invariance, variance and covariance losses, without negative pairs and labels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 8))
        self.expander = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        views = [self.expander(self(batch[0] + 0.3 * torch.randn_like(batch[0]))) for _ in range(2)]
        loss = 25 * fn.mse_loss(views[0], views[1])
        for view in views:
            centred = view - view.mean(0)
            spread = (centred.var(0) + 1e-4).sqrt()
            shared = centred.T @ centred / (len(view) - 1)
            loss = loss + 12.5 * fn.relu(1 - spread).mean()
            loss = loss + (shared.square().sum() - shared.diagonal().square().sum()) / view.shape[1]
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-4)


def _variance_and_covariance_keep_codes_apart(seed: int, return_dict: bool) -> TrainingSetup:
    """VICReg on noisy factors: the module always returns only the loss, whose scale is arbitrary."""
    source = make_generator(seed)
    inputs = torch.randn(40 * 64, 5, generator=source) @ torch.randn(5, 16, generator=source)
    return TrainingSetup(_VicReg(), make_loader(64, inputs), None, {"max_epochs": 3})


def _codes_spread(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    outcome.after.eval()
    with torch.no_grad():
        codes = torch.cat([outcome.after(batch[0]) for batch in outcome.fit.train])
    return bool((codes.std(0) > 0.05).all())


class _TiedShrinking(nn.Module):
    """A sparse code with a soft threshold, decoded by the transposed encoder weights."""

    def __init__(self) -> None:
        super().__init__()
        self.atoms = nn.Parameter(fn.normalize(torch.randn(48, 20), dim=1))
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scores = inputs @ self.atoms.T
        codes = scores.sign() * fn.relu(scores.abs() - self.threshold)
        return codes @ self.atoms


def _tied_atoms_with_shrunk_codes(seed: int, return_dict: bool) -> TrainingSetup:
    """Most codes are exactly zero, and encoder and decoder share one tensor. Reconstruction improves."""
    source = make_generator(seed)
    atoms = fn.normalize(torch.randn(32, 20, generator=source), dim=1)
    inputs = (torch.rand(60 * 32 + 256, 32, generator=source) < 0.08).float() * 2 @ atoms
    train, validation = make_loaders(256, 32, inputs, inputs)
    module = Supervised(_TiedShrinking(), fn.mse_loss, return_dict, lambda params: torch.optim.Adam(params, lr=5e-3))
    return TrainingSetup(module, train, validation, {"max_epochs": 4})


class _SummedVae(pl.LightningModule):
    """A VAE with Bernoulli pixels and summed losses: the loss is in the thousands, as it should be."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 100), nn.Unflatten(1, (1, 10, 10)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (pictures,) = batch
        mean, logvar = self.encoder(pictures).chunk(2, 1)
        logits = self.decoder(mean + torch.randn_like(mean) * (0.5 * logvar).exp())
        loss = fn.binary_cross_entropy_with_logits(logits, pictures, reduction="sum")
        loss = loss - 0.5 * (1 + logvar - mean.square() - logvar.exp()).sum()
        return {"loss": loss, "preds": logits, "target": pictures} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=6e-3)


def _pixels_summed_over_the_batch_in_a_vae(seed: int, return_dict: bool) -> TrainingSetup:
    """The evidence bound as in the first VAE example: summed over pixels and images, 1e3 and more."""
    pictures, _ = bars(seed, 60 * 32, noise=0.0)
    return TrainingSetup(_SummedVae(return_dict), make_loader(32, (pictures > 1).float()), None, {"max_epochs": 6})


class _LeftOver(pl.LightningModule):
    """A frozen body with a new head. The head of the pretext task remains in the module."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.body = perceptron(12, 64, 32, between=nn.Tanh)
        self.pretext_head = nn.Linear(32, 12)
        self.head = nn.Linear(32, 1)
        self.body.requires_grad_(requires_grad=False).eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(inputs)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds = self(batch[0])
        loss = fn.huber_loss(preds, batch[1])
        return {"loss": loss, "preds": preds, "target": batch[1]} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", fn.huber_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([weight for weight in self.parameters() if weight.requires_grad], lr=1e-2)


def _pretext_head_left_in_the_module(seed: int, return_dict: bool) -> TrainingSetup:
    """A frozen body, a new head, and the pretext head in the optimizer, which never receives a gradient."""
    source = make_generator(seed)
    inputs = torch.randn(60 * 32 + 300, 12, generator=source)
    target = inputs @ torch.randn(12, 1, generator=source) / 3 + 0.2 * torch.randn(len(inputs), 1, generator=source)
    train, validation = make_loaders(300, 32, inputs, target)
    return TrainingSetup(_LeftOver(return_dict), train, validation)


PROGRAMS = [
    Program(
        "quarter_turns_of_pictures_predicted",
        "convolutional",
        _quarter_turns_of_pictures_predicted,
        frozenset(),
        all_of(is_accurate(0.85), validation_is_stable(0.1)),
        "https://arxiv.org/abs/1803.07728",
    ),
    Program(
        "futures_of_waves_distinguished",
        "sequence",
        _futures_of_waves_distinguished,
        frozenset(),
        all_of(began_above(3.5), fell_to(2.9)),
        "https://arxiv.org/abs/1807.03748",
    ),
    Program(
        "variance_and_covariance_keep_codes_apart",
        "dense",
        _variance_and_covariance_keep_codes_apart,
        frozenset(),
        all_of(fell_by(0.3), _codes_spread),
        "https://arxiv.org/abs/2105.04906",
    ),
    Program(
        "tied_atoms_with_shrunk_codes",
        "regression",
        _tied_atoms_with_shrunk_codes,
        frozenset(),
        all_of(explains_variance(0.5), validation_is_stable(), has_changed("network.atoms")),
        "https://arxiv.org/abs/1312.5663",
    ),
    Program(
        "pixels_summed_over_the_batch_in_a_vae",
        "convolutional",
        _pixels_summed_over_the_batch_in_a_vae,
        frozenset(),
        all_of(began_above(2000), fell_to(800)),
        "https://github.com/pytorch/examples/tree/main/vae",
    ),
    Program(
        "pretext_head_left_in_the_module",
        "regression",
        _pretext_head_left_in_the_module,
        frozenset(),
        all_of(explains_variance(0.6), validation_is_stable()),
        "https://github.com/chemprop/chemprop/issues/853",
    ),
]
