"""Faulty generative models: adversarial training, diffusion and autoencoders with codes."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.fourth.loops_support import (
    all_of,
    became_non_finite,
    digits,
    ends_above,
    make_generator,
    make_loader,
    mixed_digits,
    mlp,
    step_output,
    unchanged,
)
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from stormproof.finding import Problem


class _DigitGan(pl.LightningModule):
    """A DCGAN for zeros and ones. The generator has its turn first."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.generator = nn.Sequential(
            nn.Linear(16, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Unflatten(1, (32, 2, 2)),
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip
        self.judge = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(128, 1),
        )  # fmt: skip

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, _ = batch
        of_generator, of_judge = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        valid, fake = torch.ones(len(images), 1), torch.zeros(len(images), 1)
        pictures = self(torch.randn(len(images), 16))
        shown = pictures if self.is_fixed else pictures.detach()
        generator_loss = functional.binary_cross_entropy_with_logits(self.judge(shown), valid)
        of_generator.zero_grad()
        self.manual_backward(generator_loss)
        of_generator.step()
        scores = torch.cat([self.judge(images), self.judge(pictures.detach())])
        truth = torch.cat([0.9 * valid, fake])
        judge_loss = functional.binary_cross_entropy_with_logits(scores, truth)
        of_judge.zero_grad()
        self.manual_backward(judge_loss)
        of_judge.step()
        return step_output(self.return_dict, (generator_loss + judge_loss).detach(), scores, truth)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=3e-3, betas=(0.5, 0.999)),
            torch.optim.Adam(self.judge.parameters(), lr=7e-4, betas=(0.5, 0.999)),
        ]


def _gan_detached(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: the generator's loss is computed from detached pictures."""
    images, labels = mixed_digits(seed)
    train = make_loader(16, images[labels < 2], labels[labels < 2])
    return TrainingSetup(_DigitGan(return_dict, is_fixed), train, None, {"max_epochs": 20})


def _distance_to_digits(outcome: Outcome) -> float:
    outcome.after.train()
    with torch.no_grad():
        samples = outcome.after(torch.randn(512, 16)).flatten(1)
    return float(torch.cdist(samples, digits()[0][digits()[1] < 2].flatten(1)).amin(1).mean())


def _waves(seed: int, count: int = 1280) -> torch.Tensor:
    """Returns sine waves with random phase and frequency, (count, 1, 32), of variance one half."""
    source = make_generator(seed)
    phase = 6.283 * torch.rand(count, 1, generator=source)
    speed = 0.2 + 0.3 * torch.rand(count, 1, generator=source)
    return torch.sin(phase + speed * torch.arange(32)).unsqueeze(1)


class _Denoiser(nn.Module):
    """Predicts noise in a wave from the noisy wave and its time between zero and one."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 5, padding=2)
        self.time = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width))
        self.middle = nn.Conv1d(width, width, 5, padding=4, dilation=2)
        self.last = nn.Conv1d(width, 1, 5, padding=2)

    def forward(self, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        clock = torch.stack([time, torch.sin(3 * time), torch.cos(3 * time)], 1)
        states = functional.silu(self.first(noisy) + self.time(clock).unsqueeze(2))
        return self.last(states + functional.silu(self.middle(states)))


class _Diffusion(pl.LightningModule):
    """Noise prediction on waves with a cosine schedule."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.network = _Denoiser()

    def add_noise(self, waves: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Mixes waves with noise."""
        angle = (1.571 * time).view(-1, 1, 1)
        return torch.cos(angle) * waves + torch.sin(angle) * torch.randn_like(waves)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (waves,) = batch
        time = 0.2 + 0.8 * torch.rand(len(waves))
        angle = (1.571 * time).view(-1, 1, 1)
        if self.is_fixed:
            noise = torch.randn_like(waves)
            noisy = torch.cos(angle) * waves + torch.sin(angle) * noise
        else:
            noisy = self.add_noise(waves, time)
            noise = torch.randn_like(waves)
        preds = self.network(noisy, time)
        return step_output(self.return_dict, functional.mse_loss(preds, noise), preds, noise)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def _noise_twice(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: add_noise draws its own noise, and the target is drawn again."""
    return TrainingSetup(_Diffusion(return_dict, is_fixed), make_loader(32, _waves(seed)), None, {"max_epochs": 8})


class _WeightedDiffusion(pl.LightningModule):
    """Noise prediction with min-SNR weights for a schedule that ends in pure noise."""

    kept: torch.Tensor

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.network = _Denoiser(24)
        shares = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 500), 0).sqrt()
        shares = (shares - shares[-1]) * shares[0] / (shares[0] - shares[-1])
        self.register_buffer("kept", shares**2)
        self.floor = 1e-8 if is_fixed else 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (waves,) = batch
        step = torch.randint(500, (len(waves),))
        kept = self.kept[step].view(-1, 1, 1)
        noise = torch.randn_like(waves)
        preds = self.network(kept.sqrt() * waves + (1 - kept).sqrt() * noise, step / 500)
        ratio = (kept / (1 - kept)).clamp(min=self.floor)
        weights = ratio.clamp(max=5.0) / ratio
        loss = (weights * (preds - noise) ** 2).mean()
        return step_output(self.return_dict, loss, preds, noise)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-3)


def _no_signal_left(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: the signal-to-noise ratio of the last time is zero, and its weight is zero by zero."""
    return TrainingSetup(
        _WeightedDiffusion(return_dict, is_fixed), make_loader(32, _waves(seed)), None, {"max_epochs": 5}
    )


class _CodedDigits(pl.LightningModule):
    """A VQ-VAE whose codebook is trained by its own loss."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.encoder = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 8, 3, 1, 1))
        self.codebook = nn.Embedding(32, 8)
        self.codebook.weight.data.uniform_(-1 / 32, 1 / 32)
        self.decoder = nn.Sequential(nn.Conv2d(8, 32, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, _ = batch
        states = self.encoder(images).permute(0, 2, 3, 1)
        nearest = torch.cdist(states.reshape(-1, 8), self.codebook.weight).argmin(1)
        weights = self.codebook.weight if self.is_fixed else self.codebook.weight.detach()
        codes = functional.embedding(nearest, weights).view_as(states)
        straight = states + (codes - states).detach()
        preds = self.decoder(straight.permute(0, 3, 1, 2))
        commitment = functional.mse_loss(states, codes.detach())
        reconstruction = functional.mse_loss(preds, images)
        self.log("reconstruction", reconstruction)
        loss = reconstruction + functional.mse_loss(codes, states.detach()) + 0.25 * commitment
        return step_output(self.return_dict, loss, preds, images)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def _codes_stay(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: the codes are looked up in detached weights, so that the codebook's own loss has no gradient."""
    return TrainingSetup(
        _CodedDigits(return_dict, is_fixed), make_loader(32, *mixed_digits(seed)), None, {"max_epochs": 6}
    )


class _DrawnCodes(pl.LightningModule):
    """A variational autoencoder built with torch.distributions."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.is_fixed = is_fixed
        self.encoder = mlp(64, 128, 16, between=nn.ELU)
        self.decoder = mlp(8, 128, 64, between=nn.ELU)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images.flatten(1)).chunk(2, 1)[0]).view_as(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, _ = batch
        mean, scale = self.encoder(images.flatten(1)).chunk(2, 1)
        posterior = Normal(mean, functional.softplus(scale) + 1e-3)
        codes = posterior.rsample() if self.is_fixed else posterior.sample()
        preds = self.decoder(codes).view_as(images)
        misfit = ((preds - images) ** 2).sum((1, 2, 3)).mean() / (2 * 0.15**2)
        divergence = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean()
        return step_output(self.return_dict, misfit + divergence, preds, images)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adamax(self.parameters(), lr=4e-3)


def _drawn_without_gradient(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: sample() cuts the gradient from the decoder to the encoder."""
    return TrainingSetup(
        _DrawnCodes(return_dict, is_fixed), make_loader(32, *mixed_digits(seed)), None, {"max_epochs": 12}
    )


def _reconstructs_less_than(share: float, outcome: Outcome) -> bool:
    images = digits()[0]
    with torch.no_grad():
        rest = (outcome.after(images) - images).square().mean() / (images - images.mean(0)).square().mean()
    return not 1 - float(rest) >= share


class _Wasserstein(pl.LightningModule):
    """WGAN with gradient penalty. The critic has three turns for each of the generator."""

    def __init__(self, return_dict: bool, is_fixed: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.generator = mlp(4, 64, 64, 2)
        self.critic = mlp(2, 64, 64, 1, between=nn.SiLU)
        if not is_fixed:
            self.critic.append(nn.Sigmoid())

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (points,) = batch
        of_generator, of_critic = self.optimizers()  # pyright: ignore[reportGeneralTypeIssues]
        fakes = self(torch.randn(len(points), 4))
        share = torch.rand(len(points), 1)
        between = (share * points + (1 - share) * fakes.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        penalty = ((slope.norm(dim=1) - 1) ** 2).mean()
        loss = self.critic(fakes.detach()).mean() - self.critic(points).mean() + 0.1 * penalty
        of_critic.zero_grad()
        self.manual_backward(loss)
        of_critic.step()
        if batch_idx % 3 == 2:
            of_generator.zero_grad()
            self.manual_backward(-self.critic(fakes).mean())
            of_generator.step()
        return step_output(self.return_dict, loss.detach())

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=1e-3, betas=(0.0, 0.9)),
            torch.optim.Adam(self.critic.parameters(), lr=2e-3, betas=(0.0, 0.9)),
        ]


def _sigmoid_of_a_critic(seed: int, return_dict: bool, is_fixed: bool = False) -> TrainingSetup:
    """Bug here: the critic of a WGAN ends with the sigmoid of a discriminator."""
    points = torch.tensor([12.0, -9.0]) + torch.randn(64 * 150, 2, generator=make_generator(seed))
    return TrainingSetup(_Wasserstein(return_dict, is_fixed), make_loader(64, points), None, {"max_epochs": 7})


def _distance_to_points(outcome: Outcome) -> float:
    with torch.no_grad():
        return float((outcome.after(torch.randn(512, 4)).mean(0) - torch.tensor([12.0, -9.0])).norm())


PROGRAMS: list[Program] = [
    Program(
        "generator_of_digits_judged_by_detached_pictures",
        "convolutional",
        _gan_detached,
        frozenset({Problem.NO_GRADIENT, Problem.WEIGHTS_UNCHANGED}),
        all_of(unchanged("generator"), lambda outcome: _distance_to_digits(outcome) > 2.6),
        "https://github.com/nikhilsinghmus/image2reverb/issues/37",
    ),
    Program(
        "diffusion_predicts_noise_that_is_drawn_again",
        "convolutional",
        _noise_twice,
        frozenset(
            {
                Problem.TARGETS_UNRELATED_TO_INPUTS,
                Problem.NO_BETTER_THAN_CONSTANT,
                Problem.OUTPUT_IGNORES_INPUT,
            }
        ),
        ends_above(0.9),
        "https://discuss.huggingface.co/t/why-is-the-loss-of-diffusion-model-calculated-between-random-noise-and-model-predicted-noise-not-between-actual-added-noise-and-model-predicted-noise/41198",
    ),
    Program(
        "weights_by_a_signal_to_noise_ratio_of_zero",
        "convolutional",
        _no_signal_left,
        frozenset({Problem.NON_FINITE}),
        became_non_finite,
        "https://github.com/TiankaiHang/Min-SNR-Diffusion-Training/pull/4",
    ),
    Program(
        "codebook_is_detached_before_its_own_loss",
        "convolutional",
        _codes_stay,
        frozenset({Problem.NO_GRADIENT, Problem.WEIGHTS_UNCHANGED}),
        all_of(unchanged("codebook"), ends_above(0.05)),
        "https://github.com/EdoardoBotta/RQ-VAE-Recommender/issues/24",
    ),
    Program(
        "codes_of_digits_drawn_without_reparameterization",
        "dense",
        _drawn_without_gradient,
        frozenset(
            {
                Problem.OUTPUT_IGNORES_INPUT,
                Problem.NO_BETTER_THAN_CONSTANT,
                Problem.TARGETS_UNRELATED_TO_INPUTS,
            }
        ),
        lambda outcome: _reconstructs_less_than(0.2, outcome),
        "https://forum.pyro.ai/t/sample-vs-rsample/2344",
    ),
    Program(
        "critic_of_a_wasserstein_gan_ends_with_a_sigmoid",
        "dense",
        _sigmoid_of_a_critic,
        frozenset({Problem.SATURATED_UNITS, Problem.VANISHING_GRADIENTS, Problem.LOSS_INPUT_MISMATCH}),
        lambda outcome: _distance_to_points(outcome) > 4,
        "https://ithelp.ithome.com.tw/articles/10298548",
    ),
]
