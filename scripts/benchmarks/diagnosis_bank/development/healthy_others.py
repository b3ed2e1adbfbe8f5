"""Healthy runs without targets, with two optimizers, or with parts that are not trained."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.development.datasets import digit_images, digit_rows, make_generator, make_loader, split, waves
from diagnosis_bank.development.measures import accuracy, ends_below, ran_to_end, step_output
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812 (conventional name)

from stormproof.finding import Problem

NOTHING: frozenset[Problem] = frozenset()


class _Adversaries(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.discriminator = nn.Sequential(
            nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)
        )

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (real,) = batch
        generator, discriminator = self.optimizers()
        noise = torch.randn(len(real), 4)

        self.toggle_optimizer(discriminator)
        generated = self.generator(noise).detach()
        loss = (F.softplus(-self.discriminator(real)) + F.softplus(self.discriminator(generated))).mean()
        discriminator.zero_grad()
        self.manual_backward(loss)
        discriminator.step()
        self.untoggle_optimizer(discriminator)

        self.toggle_optimizer(generator)
        fooled = F.softplus(-self.discriminator(self.generator(noise))).mean()
        generator.zero_grad()
        self.manual_backward(fooled)
        generator.step()
        self.untoggle_optimizer(generator)
        return fooled

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.generator.parameters(), lr=2e-3, betas=(0.5, 0.9)),
            torch.optim.Adam(self.discriminator.parameters(), lr=2e-3, betas=(0.5, 0.9)),
        )


def adversaries(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    points = torch.tensor([2.0, -1.0]) + torch.tensor([0.5, 0.2]) * torch.randn(3200, 2, generator=make_generator(seed))
    return TrainingSetup(_Adversaries(), make_loader(points, size=64, seed=seed), trainer={"max_epochs": 8})


@torch.no_grad()
def _made_points_are_where_the_real_are(outcome: Outcome) -> bool:
    generated = outcome.after(torch.randn(500, 4, generator=make_generator(0)))
    (real,) = outcome.fit.train.dataset.tensors  # type: ignore[attr-defined]
    return (
        ran_to_end(outcome)
        and bool((generated.mean(0) - real.mean(0)).norm() < 0.6)
        and bool(generated.std(0).min() > 0.03)
    )


class _Contrast(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(144, 32)
        )
        self.projector = nn.Sequential(nn.ReLU(), nn.Linear(32, 16))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.projector(self.encoder(images)), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, _ = batch
        views = [images + 0.3 * torch.randn_like(images) for _ in range(2)]
        left, right = (self(view) for view in views)
        similar = left @ right.T / 0.2
        positive_index = torch.arange(len(images))
        return (F.cross_entropy(similar, positive_index) + F.cross_entropy(similar.T, positive_index)) / 2

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def contrast(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_Contrast(), make_loader(*digit_images(), size=48, seed=seed))


class _Restorer(pl.LightningModule):
    """Autoencoder of partly masked images."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 24)
        )
        self.decoder = nn.Sequential(
            nn.Linear(24, 256),
            nn.ReLU(),
            nn.Unflatten(1, (16, 4, 4)),
            nn.ConvTranspose2d(16, 1, 2, stride=2),
            nn.Tanh(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, _ = batch
        shown = (torch.rand_like(images) > 0.15).float()
        restored = self(images * shown)
        return step_output(self.return_dict, F.mse_loss(restored, images), restored, images)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, _ = batch
        self.log("val_loss", F.mse_loss(self(images), images))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def restorer(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_Restorer(return_dict), *split(digit_images(), 32, seed))


class _MaskedTokens(pl.LightningModule):
    """Predicts masked tokens of counting sequences, with tied input and output embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 24)
        self.position = nn.Parameter(0.3 * torch.randn(8, 24))
        self.encoder = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True)
        self.decoder = nn.Linear(24, 11, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(self.embedding(tokens) + self.position))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (tokens,) = batch
        hidden = torch.rand(tokens.shape) < 0.2
        hidden[:, 3] = True
        logits = self(tokens.masked_fill(hidden, 10))
        return F.cross_entropy(logits[hidden], tokens[hidden])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def masked_tokens(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    begin = torch.randint(10, (1600, 1), generator=make_generator(seed))
    return TrainingSetup(
        _MaskedTokens(), make_loader((begin + torch.arange(8)) % 10, size=32, seed=seed), trainer={"max_epochs": 4}
    )


class _OnFeatures(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(48, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(pixels))


def _pretrained(inputs: torch.Tensor, label: torch.Tensor) -> nn.Module:
    backbone = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
    former = nn.Linear(48, 10)
    optimizer = torch.optim.Adam([*backbone.parameters(), *former.parameters()], lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(former(backbone(inputs)), label).backward()
        optimizer.step()
    return backbone.requires_grad_(False).eval()


def new_head(seed: int, return_dict: bool) -> TrainingSetup:
    """A frozen backbone pretrained on digits with a new head for odd and even."""
    torch.manual_seed(seed)
    pixels, label = digit_rows()
    network = _OnFeatures(_pretrained(pixels, label))
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda _: torch.optim.Adam(network.head.parameters(), lr=5e-3)
    )
    return TrainingSetup(module, *split((pixels, label % 2), 32, seed))


class _Halves(pl.LightningModule):
    """An encoder and a decoder of waves with one optimizer each."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.encoder = nn.GRU(1, 24, batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 20))

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        _, hidden = self.encoder(wave)
        return self.decoder(hidden[-1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        wave, _ = batch
        target = wave.squeeze(2)
        preds = self(wave)
        loss = F.mse_loss(preds, target)
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizers[0], gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        for optimizer in optimizers:
            optimizer.step()
        return step_output(self.return_dict, loss, preds, target)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.encoder.parameters(), lr=1e-2),
            torch.optim.RMSprop(self.decoder.parameters(), lr=3e-3),
        )


def halves(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    return TrainingSetup(_Halves(return_dict), make_loader(*waves(seed), size=32, seed=seed))


def plain_images(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    module = Supervised(
        network, F.cross_entropy, return_dict, lambda parameters: torch.optim.AdamW(parameters, lr=3e-3)
    )
    return TrainingSetup(module, *split(digit_images(), 32, seed))


PROGRAMS: list[Program] = [
    Program(
        name="generator_and_discriminator",
        domain="dense",
        build=adversaries,
        problems=NOTHING,
        took_effect=_made_points_are_where_the_real_are,
        source="https://arxiv.org/abs/1406.2661",
    ),
    Program(
        name="views_of_an_image_are_distinguished",
        domain="convolutional",
        build=contrast,
        problems=NOTHING,
        took_effect=lambda outcome: ends_below(outcome, 1.5),
        source="https://arxiv.org/abs/2002.05709",
    ),
    Program(
        name="hidden_pixels_are_restored",
        domain="convolutional",
        build=restorer,
        problems=NOTHING,
        took_effect=lambda outcome: ends_below(outcome, 0.2),
        source="constructed: a reconstruction, without labels",
    ),
    Program(
        name="hidden_tokens_are_guessed_with_tied_weights",
        domain="sequence",
        build=masked_tokens,
        problems=NOTHING,
        took_effect=lambda outcome: ends_below(outcome, 0.8),
        source="https://arxiv.org/abs/1608.05859",
    ),
    Program(
        name="backbone_is_frozen_and_a_new_head_learns",
        domain="dense",
        build=new_head,
        problems=NOTHING,
        took_effect=lambda outcome: accuracy(outcome) > 0.85 and ends_below(outcome, 0.35),
        source="https://pgg1610.github.io/data_blog/posts/2020-10-19-pytorch_transfer_learning_basics.html",
    ),
    Program(
        name="encoder_and_decoder_have_an_optimizer_each",
        domain="sequence",
        build=halves,
        problems=NOTHING,
        took_effect=lambda outcome: ends_below(outcome, 0.15),
        source="constructed: two optimizers that are cleared and stepped correctly",
    ),
    Program(
        name="plain_network_on_images",
        domain="convolutional",
        build=plain_images,
        problems=NOTHING,
        took_effect=lambda outcome: accuracy(outcome) > 0.9 and ends_below(outcome, 0.4),
        source="constructed: a default setup",
    ),
]
