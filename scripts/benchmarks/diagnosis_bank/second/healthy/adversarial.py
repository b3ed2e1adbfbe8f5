"""Adversarial training, in which neither loss should fall to zero."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from diagnosis_bank.second.healthy.datasets import RecordDataset, blobs, make_generator, make_loader, stripes
from diagnosis_bank.second.healthy.measures import has_changed, ran_to_end, step_output
from torch import nn


def _ring(seed: int, samples: int) -> torch.Tensor:
    random = make_generator(seed)
    angle = 2 * math.pi * torch.rand(samples, generator=random)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.05 * torch.randn(samples, 2, generator=random)


class _Gan(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.generator = nn.Sequential(
            nn.Linear(4, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 2)
        )
        self.discriminator = nn.Sequential(
            nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1)
        )

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (real,) = batch
        generating, discriminating = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        fake = self(torch.randn(len(real), 4))

        logits = self.discriminator(torch.cat([real, fake.detach()]))
        labels = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)])
        discriminator_loss = F.binary_cross_entropy_with_logits(logits, labels)
        discriminating.zero_grad()
        self.manual_backward(discriminator_loss)
        discriminating.step()

        generator_loss = F.binary_cross_entropy_with_logits(self.discriminator(fake), torch.ones(len(real), 1))
        generating.zero_grad()
        self.manual_backward(generator_loss)
        generating.step()
        return step_output(self.return_dict, generator_loss.detach(), logits.detach(), labels)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.generator.parameters(), lr=1e-3, betas=(0.5, 0.999)),
            torch.optim.Adam(self.discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999)),
        )


def _gan(seed: int, return_dict: bool) -> TrainingSetup:
    """The textbook GAN on a ring of points: both losses remain near the entropy of a coin."""
    return TrainingSetup(_Gan(return_dict), make_loader(_ring(seed, 3840), size=64), trainer={"max_epochs": 6})


def _is_ring(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    with torch.no_grad():
        points = outcome.after(torch.randn(512, 4, generator=make_generator(1)))
    radius = points.norm(dim=1)
    quadrants = {(x > 0, y > 0) for x, y in points.tolist()}
    return bool((radius.median() - 1).abs() < 0.25) and bool(radius.std() < 0.55) and len(quadrants) == 4


class _WassersteinGan(pl.LightningModule):
    """The critic learns in every batch and the generator in every fifth. The critic's loss is negative by design."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6))
        self.critic = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise)

    def _penalty(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        share = torch.rand(len(real), 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        return ((slope.norm(dim=1) - 1) ** 2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        real = batch["window"]
        generating, criticizing = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        fake = self(torch.randn(len(real), 8))
        self.toggle_optimizer(criticizing)
        loss = self.critic(fake.detach()).mean() - self.critic(real).mean() + 5 * self._penalty(real, fake.detach())
        self.manual_backward(loss)
        criticizing.step()
        criticizing.zero_grad()
        self.untoggle_optimizer(criticizing)
        if batch_idx % 5 == 4:
            self.toggle_optimizer(generating)
            self.manual_backward(-self.critic(self(torch.randn(len(real), 8))).mean())
            generating.step()
            generating.zero_grad()
            self.untoggle_optimizer(generating)
        return {"loss": loss} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.generator.parameters(), lr=3e-3, betas=(0.0, 0.9)),
            torch.optim.Adam(self.critic.parameters(), lr=2e-3, betas=(0.0, 0.9)),
        )


_MEANS = torch.tensor([2.0, -1.0, 0.5, 0.0, 3.0, -2.0])


def _wasserstein(seed: int, return_dict: bool) -> TrainingSetup:
    """WGAN-GP on windows of a random walk."""
    steps = 0.5 * torch.randn(2560, 6, generator=make_generator(seed))
    data = torch.utils.data.DataLoader(
        RecordDataset(window=steps.cumsum(1) * 0.6 + _MEANS), batch_size=64, shuffle=True
    )
    return TrainingSetup(_WassersteinGan(return_dict), data, trainer={"max_epochs": 10})


def _is_walk(outcome: Outcome) -> bool:
    if not ran_to_end(outcome) or outcome.mean_loss(40) > 0.15 * outcome.first_loss():
        return False
    with torch.no_grad():
        generated = outcome.after(torch.randn(512, 8, generator=make_generator(1)))
    return bool(((generated.mean(0) - _MEANS).abs() < 0.9).all()) and 0.2 < float(generated.std(0).mean()) < 1.2


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, strength: float) -> torch.Tensor:
        ctx.strength = strength
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return -ctx.strength * gradients[0], None


class _DomainAdversarial(pl.LightningModule):
    def __init__(self, return_dict: bool, steps: int) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.steps = steps
        self.features = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.LayerNorm(16))
        self.label = nn.Linear(16, 4)
        self.domain = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.label(self.features(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target, domain = batch
        strength = 2 / (1 + math.exp(-10 * self.global_step / self.steps)) - 1
        features = self.features(inputs)
        logits = self.label(features)
        label_loss = F.cross_entropy(logits[domain == 0], target[domain == 0])
        guess = self.domain(_Reversed.apply(features, strength)).squeeze(1)
        self.domain_loss = F.binary_cross_entropy_with_logits(guess, domain).detach()
        loss = label_loss + F.binary_cross_entropy_with_logits(guess, domain)
        return step_output(self.return_dict, loss, logits[domain == 0], target[domain == 0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _domain_adversarial(seed: int, return_dict: bool) -> TrainingSetup:
    """Gradient reversal: the domain head should end at chance level."""
    inputs, target = blobs(seed, 1280, apart=1.5)
    domain = torch.arange(1280) % 2
    inputs = inputs + 2.0 * domain.unsqueeze(1) * torch.eye(16)[3]
    return TrainingSetup(
        _DomainAdversarial(return_dict, 200), make_loader(inputs, target, domain.float()), trainer={"max_epochs": 5}
    )


def _transfers(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    right = []
    with torch.no_grad():
        for inputs, target, domain in outcome.fit.train:
            right.append((outcome.after(inputs).argmax(1) == target)[domain == 1])
    return float(torch.cat(right).float().mean()) > 0.85 and float(getattr(outcome.after, "domain_loss", 0.0)) > 0.45


class _LeastSquaresGan(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.G = nn.Sequential(
            nn.ConvTranspose2d(8, 24, 3), nn.BatchNorm2d(24), nn.ReLU(True),
            nn.ConvTranspose2d(24, 12, 4, 2, 1), nn.BatchNorm2d(12), nn.ReLU(True),
            nn.ConvTranspose2d(12, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.D = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 12, 4, 2, 1)), nn.LeakyReLU(0.2),
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(12, 24, 4, 2, 1)), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(24 * 9, 1),
        )  # fmt: skip

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.G(noise.view(-1, 8, 1, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        real = batch[0]
        optimizers: Any = self.optimizers()
        fake = self(torch.randn(len(real), 8))
        loss = torch.zeros(())
        for turn, optimizer in enumerate(optimizers):
            optimizer.zero_grad()
            if turn == 0:
                loss = 0.5 * ((self.D(real) - 1) ** 2).mean() + 0.5 * (self.D(fake.detach()) ** 2).mean()
            else:
                loss = 0.5 * ((self.D(fake) - 1) ** 2).mean()
            self.manual_backward(loss)
            optimizer.step()
        return {"loss": loss} if self.return_dict else loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.9)) for part in (self.D, self.G)]


def _least_squares(seed: int, return_dict: bool) -> TrainingSetup:
    """A convolutional LSGAN with spectral norm on images in [-1, 1]. The generator's loss rises early."""
    images, _ = stripes(seed, 960, classes=2, noise=0.05)
    return TrainingSetup(_LeastSquaresGan(return_dict), make_loader(images.clamp(-1, 1)), trainer={"max_epochs": 5})


def _draws_stripes(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    with torch.no_grad():
        generated = outcome.after.train()(torch.randn(128, 8, generator=make_generator(1)))
    apart = max(float((first - second).abs().mean()) for first, second in itertools.pairwise(generated[:20]))
    return 0.45 < float(generated.std()) < 1.0 and apart > 0.2 and has_changed(outcome, "G.0.weight")


PROGRAMS = [
    Program(
        "gan_on_a_ring",
        "dense",
        _gan,
        frozenset(),
        _is_ring,
        "https://exchangetuts.com/how-to-interpret-the-discriminators-loss-and-the-generators-loss-in-generative-adversarial-nets-1639788440105736",
    ),
    Program(
        "wgan_gp_generator_each_fifth_batch",
        "sequence",
        _wasserstein,
        frozenset(),
        _is_walk,
        "https://errorhandle.ai/increasingly-large-positive-wgan-gp-loss",
    ),
    Program(
        "domain_head_ends_at_chance",
        "dense",
        _domain_adversarial,
        frozenset(),
        _transfers,
        "https://github.com/fungtion/DANN_py3/issues/12",
    ),
    Program(
        "least_squares_gan_with_spectral_norm",
        "convolutional",
        _least_squares,
        frozenset(),
        _draws_stripes,
        "https://www.mo4tech.com/why-cant-gan-loss-go-down.html",
    ),
]
