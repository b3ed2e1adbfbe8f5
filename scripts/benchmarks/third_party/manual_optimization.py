"""Trains a GAN and a DQN with manual optimization. Both return measurements, since their losses need not fall."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from projects import TRAINER
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from training_data import digits


class DCGAN(pl.LightningModule):
    """Generates 16 x 16 images. ``distances`` are between the means and standard deviations of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.distances: list[float] = []
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(32, 64, 4, 1, 0, bias=False), nn.BatchNorm2d(64), nn.ReLU(True),
            nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(True),
            nn.ConvTranspose2d(32, 1, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True),
            nn.Conv2d(32, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.2, True),
            nn.Conv2d(64, 1, 4, 1, 0, bias=False), nn.Flatten(),
        )  # fmt: skip
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, 0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1, 0.02)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        optimizer_d, optimizer_g = optimizers
        real = batch[0] * 2 - 1
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        fake = self.generator(torch.randn(len(real), 32, 1, 1))
        loss_d = functional.binary_cross_entropy_with_logits(self.discriminator(real), ones)
        loss_d = loss_d + functional.binary_cross_entropy_with_logits(self.discriminator(fake.detach()), zeros)
        optimizer_d.zero_grad()
        self.manual_backward(loss_d)
        optimizer_d.step()
        loss_g = functional.binary_cross_entropy_with_logits(self.discriminator(fake), ones)
        optimizer_g.zero_grad()
        self.manual_backward(loss_g)
        optimizer_g.step()
        distance = (fake.mean(0) - real.mean(0)).abs().mean() + (fake.std(0) - real.std(0)).abs().mean()
        self.distances.append(float(distance))

    def configure_optimizers(self) -> Any:
        networks = (self.discriminator, self.generator)
        return [torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999)) for network in networks]


def dcgan(seed: int, callbacks: list[Any]) -> list[float]:
    """Returns the distance between generated and real images after each step."""
    loader = DataLoader(TensorDataset(*digits(16, seed)), batch_size=32, shuffle=True, drop_last=True)
    network = DCGAN()
    pl.Trainer(**TRAINER, max_epochs=5, callbacks=callbacks).fit(network, loader)
    return network.distances


class CartPole:
    """The cart and pole of Barto, Sutton and Anderson, as in gymnasium."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def reset(self) -> np.ndarray:
        self.state, self.time = self.random.uniform(-0.05, 0.05, 4), 0
        return self.state.astype(np.float32)

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        _, v, angle, w = self.state
        force = 10.0 if action else -10.0
        sine, cosine = math.sin(angle), math.cos(angle)
        push = (force + 0.05 * w * w * sine) / 1.1
        acceleration = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
        change = np.array([v, push - 0.05 * acceleration * cosine / 1.1, w, acceleration])
        self.state = self.state + 0.02 * change
        self.time += 1
        failed = abs(self.state[0]) > 2.4 or abs(self.state[2]) > 0.2095
        return self.state.astype(np.float32), 1.0, bool(failed or self.time >= 200)


class DQN(pl.LightningModule):
    """Fills a replay buffer for 100 batches, and then trains with a target network."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        self.target = copy.deepcopy(self.net).requires_grad_(False)
        self.game = CartPole(seed)
        self.memory: list[tuple[Any, ...]] = []
        self.lengths: list[float] = []
        self.state, self.played, self.length = self.game.reset(), 0, 0

    def play(self) -> None:
        self.played += 1
        if random.random() < max(0.05, 1 - self.played / 4000):
            action = random.randrange(2)
        else:
            with torch.no_grad():
                action = int(self.net(torch.from_numpy(self.state)[None]).argmax())
        after, reward, done = self.game.step(action)
        self.length += 1
        self.memory.append((self.state, action, reward, after, float(done and self.length < 200)))
        self.state = after
        if done:
            self.lengths.append(self.length)
            self.state, self.length = self.game.reset(), 0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for _ in range(4):
            self.play()
        if batch_idx < 100:
            return
        sample = random.sample(self.memory, 64)
        state, action, reward, after, end = (torch.tensor(np.array(column)) for column in zip(*sample, strict=True))
        value = self.net(state).gather(1, action[:, None]).squeeze(1)
        with torch.no_grad():
            goal = reward.float() + 0.98 * (1 - end.float()) * self.target(after).max(1).values
        loss = functional.smooth_l1_loss(value, goal)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if batch_idx % 50 == 0:
            self.target.load_state_dict(self.net.state_dict())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=1e-3)


def dqn(seed: int, callbacks: list[Any]) -> list[float]:
    """Returns the lengths of the episodes."""
    loader = DataLoader(TensorDataset(torch.zeros(1600, 1)), batch_size=1)
    network = DQN(seed)
    pl.Trainer(**TRAINER, max_epochs=1, callbacks=callbacks).fit(network, loader)
    return network.lengths
