"""Generative models and agents whose losses rise by design or do not show quality."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from diagnosis_bank.program import Outcome, Program, TrainingSetup
from diagnosis_bank.second.healthy.datasets import make_generator, make_loader, stripes, tones
from diagnosis_bank.second.healthy.measures import has_changed, loss_fell, ran_to_end, step_output
from torch import nn


class _Annealed(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.mean = nn.Linear(144, 6)
        self.logvar = nn.Linear(144, 6)
        self.decoder = nn.Sequential(
            nn.Linear(6, 144), nn.ReLU(), nn.Unflatten(1, (16, 3, 3)),
            nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1),
        )  # fmt: skip
        self.reconstructions: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images = batch[0]
        states = self.encoder(images)
        mean, logvar = self.mean(states), self.logvar(states)
        preds = self.decoder(mean + torch.randn_like(mean) * (0.5 * logvar).exp())
        reconstruction = F.mse_loss(preds, images, reduction="none").sum((1, 2, 3)).mean()
        divergence = 0.5 * (logvar.exp() + mean**2 - 1 - logvar).sum(1).mean()
        weight = min(1.0, max(0.0, (self.global_step - 120) / 120)) * 6
        self.reconstructions.append(float(reconstruction))
        return step_output(self.return_dict, reconstruction + weight * divergence, preds, images)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _annealed(seed: int, return_dict: bool) -> TrainingSetup:
    """A VAE whose divergence weight rises from 0 to 6 in the second half, so the loss rises."""
    images, _ = stripes(seed, 960, noise=0.1)
    return TrainingSetup(_Annealed(return_dict), make_loader(images), trainer={"max_epochs": 8})


def _rises(outcome: Outcome) -> bool:
    reconstructions: list[float] = getattr(outcome.after, "reconstructions", [])
    return (
        ran_to_end(outcome)
        and sum(reconstructions[-10:]) < 0.7 * sum(reconstructions[:10])
        and outcome.mean_loss() > min(outcome.losses[80:140])
    )


class _Codebook(pl.LightningModule):
    codes: torch.Tensor
    count: torch.Tensor
    total: torch.Tensor

    def __init__(self, return_dict: bool, size: int = 32) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.encoder = nn.Sequential(nn.Conv1d(1, 16, 4, 4), nn.GELU(), nn.Conv1d(16, 8, 1))
        self.decoder = nn.Sequential(nn.Conv1d(8, 32, 3, padding=1), nn.GELU(), nn.ConvTranspose1d(32, 1, 4, 4))
        self.register_buffer("codes", 0.3 * torch.randn(size, 8))
        self.register_buffer("count", torch.ones(size))
        self.register_buffer("total", self.codes.clone())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        waves = batch[0].unsqueeze(1)
        states = self.encoder(waves)
        flat = states.transpose(1, 2).reshape(-1, 8)
        nearest = torch.cdist(flat, self.codes).argmin(1)
        quantized = self.codes[nearest].view(len(waves), -1, 8).transpose(1, 2)
        if self.training:
            with torch.no_grad():
                hot = F.one_hot(nearest, len(self.codes)).float()
                self.count.lerp_(hot.sum(0), 0.1)
                self.total.lerp_(hot.T @ flat, 0.1)
                self.codes.copy_(self.total / self.count.clamp(min=0.1).unsqueeze(1))
        preds = self.decoder(states + (quantized - states).detach())
        loss = F.mse_loss(preds, waves) + 0.25 * F.mse_loss(states, quantized.detach())
        return step_output(self.return_dict, loss, preds, waves)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def _codebook(seed: int, return_dict: bool) -> TrainingSetup:
    """VQ-VAE on waves. The codes are a buffer of moving averages, and most codes are unused."""
    return TrainingSetup(_Codebook(return_dict), make_loader(*tones(seed, 960)), trainer={"max_epochs": 6})


class _Diffusion(pl.LightningModule):
    kept: torch.Tensor

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        last = nn.Linear(64, 2)
        nn.init.zeros_(last.weight)
        self.net = nn.Sequential(nn.Linear(7, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), last)
        self.register_buffer("kept", torch.cumprod(1 - torch.linspace(1e-3, 0.15, 50), 0))

    def forward(self, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        share = time.unsqueeze(1) / 50
        waves = [torch.sin(6.28 * share), torch.cos(6.28 * share), torch.sin(12.6 * share), torch.cos(12.6 * share)]
        return self.net(torch.cat([noisy, share, *waves], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (points,) = batch
        time = torch.randint(50, (len(points),))
        signal_level = self.kept[time].unsqueeze(1)
        noise = torch.randn_like(points)
        preds = self(signal_level.sqrt() * points + (1 - signal_level).sqrt() * noise, time)
        return step_output(self.return_dict, F.mse_loss(preds, noise), preds, noise)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _diffusion(seed: int, return_dict: bool) -> TrainingSetup:
    """Diffusion of points: the noise cannot be fully predicted, so the loss soon remains constant."""
    random = make_generator(seed)
    corner = torch.randint(2, (1920, 2), generator=random) * 2.0 - 1
    return TrainingSetup(
        _Diffusion(return_dict),
        make_loader(corner + 0.1 * torch.randn(1920, 2, generator=random)),
        trainer={"max_epochs": 5},
    )


class _Policy(pl.LightningModule):
    def __init__(self, return_dict: bool, rewards: torch.Tensor) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.rewards = rewards
        self.net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
        self.value = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
        self.earned: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (states,) = batch
        rng = torch.distributions.Categorical(logits=self.net(states))
        action = rng.sample()
        reward = (states @ self.rewards).gather(1, action.unsqueeze(1)).squeeze(1) + 0.5 * torch.randn(len(states))
        self.earned.append(float(reward.mean()))
        value = self.value(states).squeeze(1)
        advantage = (reward - value).detach()
        policy = -(rng.log_prob(action) * advantage).mean()
        loss = policy + 0.5 * F.mse_loss(value, reward) - 0.02 * rng.entropy().mean()
        return step_output(self.return_dict, loss, value, reward)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def _policy(seed: int, return_dict: bool) -> TrainingSetup:
    """Advantage actor-critic on a contextual bandit: the loss fluctuates while the reward grows."""
    random = make_generator(seed)
    rewards = torch.randn(6, 4, generator=random)
    return TrainingSetup(
        _Policy(return_dict, rewards),
        make_loader(torch.randn(2560, 6, generator=random), size=64),
        trainer={"max_epochs": 6},
    )


def _earns(outcome: Outcome) -> bool:
    earned: list[float] = getattr(outcome.after, "earned", [])
    return ran_to_end(outcome) and sum(earned[-20:]) / 20 > sum(earned[:20]) / 20 + 1.0


class _DeepQ(pl.LightningModule):
    """A walk on a line with a reward at its end: values grow from zero, and so does the loss at first."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        values = nn.Linear(32, 2)
        nn.init.zeros_(values.weight)
        self.q = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), values)
        self.target = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2)).requires_grad_(False)
        self.target.load_state_dict(self.q.state_dict())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        state, action, reward, following, ended = batch
        value = self.q(F.one_hot(state, 8).float()).gather(1, action.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            best = self.target(F.one_hot(following, 8).float()).max(1).values
        td_target = reward + 0.95 * best * (1 - ended)
        return step_output(self.return_dict, F.smooth_l1_loss(value, td_target), value, td_target)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step % 20 == 0:
            self.target.load_state_dict(self.q.state_dict())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam((weight for weight in self.parameters() if weight.requires_grad), lr=1e-2)


def _deep_q(seed: int, return_dict: bool) -> TrainingSetup:
    """DQN with a replay memory and a target network renewed every twenty steps: a sawtooth loss."""
    random = make_generator(seed)
    state = torch.randint(8, (2560,), generator=random)
    action = torch.randint(2, (2560,), generator=random)
    following = (state + 2 * action - 1).clamp(0, 7)
    ended = ((state == 7) & (action == 1)).float()
    reward = 10 * ended + 0.1 * torch.randn(2560, generator=random)
    return TrainingSetup(
        _DeepQ(return_dict), make_loader(state, action, reward, following, ended), trainer={"max_epochs": 8}
    )


def _goes_right(outcome: Outcome) -> bool:
    module: Any = outcome.after
    with torch.no_grad():
        values = module.q(torch.eye(8))
    return (
        ran_to_end(outcome) and bool((values[2:, 1] > values[2:, 0]).all()) and has_changed(outcome, "target.0.weight")
    )


PROGRAMS = [
    Program(
        "vae_with_annealed_divergence",
        "convolutional",
        _annealed,
        frozenset(),
        _rises,
        "https://github.com/nv-tlabs/LION/issues/17",
    ),
    Program(
        "vq_vae_with_averaged_codes",
        "sequence",
        _codebook,
        frozenset(),
        loss_fell(0.6),
        "https://github.com/lucidrains/vector-quantize-pytorch/issues/40",
    ),
    Program(
        "diffusion_with_floor",
        "dense",
        _diffusion,
        frozenset(),
        lambda outcome: ran_to_end(outcome) and outcome.mean_loss(30) < 0.75 * outcome.first_loss(),
        "https://github.com/zoubohao/DenoisingDiffusionProbabilityModel-ddpm-/issues/48",
    ),
    Program(
        "actor_critic_on_bandit",
        "dense",
        _policy,
        frozenset(),
        _earns,
        "https://github.com/DLR-RM/stable-baselines3/issues/661",
    ),
    Program(
        "deep_q_with_target_network",
        "dense",
        _deep_q,
        frozenset(),
        _goes_right,
        "https://github.com/IntelLabs/coach/issues/214",
    ),
]
