"""Denoising diffusion on two-dimensional moons."""

import math
import os

import numpy as np
import torch
from torch import nn

T = 100


class TimeEmbedding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.register_buffer("freq", torch.exp(-math.log(1000) * torch.arange(dim // 2) / (dim // 2)))

    def forward(self, t):
        angles = t[:, None].float() * self.freq
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Denoiser(nn.Module):
    def __init__(self, width=640, time=64):
        super().__init__()
        self.time = TimeEmbedding(time)
        self.inp = nn.Linear(2 + time, width)
        self.mid = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, 2)

    def forward(self, x, t):
        h = torch.nn.functional.silu(self.inp(torch.cat([x, self.time(t)], 1)))
        for layer in self.mid:
            h = h + torch.nn.functional.silu(layer(h))
        return self.out(h)


def make_moons(n=4000, seed=0):
    np.random.seed(seed)
    angle = np.pi * np.random.rand(n)
    upper = np.random.rand(n) < 0.5
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return (np.stack([x, y], 1) + 0.05 * np.random.randn(n, 2)).astype(np.float32)


class Trainer:
    def __init__(self, workdir, steps=150, batch_size=256):
        self.workdir, self.steps, self.batch_size = workdir, steps, batch_size
        torch.manual_seed(0)
        self.model = Denoiser()
        self.optim = torch.optim.Adam(self.model.parameters(), lr=1e-3, betas=(0.9, 0.99))
        betas = np.linspace(1e-4, 0.06, T)
        self.alpha = np.cumprod(1 - betas).astype(np.float32)
        self.step = 0

    @property
    def file(self):
        return os.path.join(self.workdir, "ddpm.pt")

    def load(self):
        if not os.path.exists(self.file):
            return
        data = torch.load(self.file, weights_only=False)
        self.model.load_state_dict(data["model"])
        self.optim.load_state_dict(data["optim"])
        self.step = data["step"]
        np.random.set_state(data["numpy"])

    def save(self):
        data = {
            "model": self.model.state_dict(),
            "optim": self.optim.state_dict(),
            "step": self.step,
            "numpy": np.random.get_state(),
        }
        torch.save(data, self.file + ".new")
        os.replace(self.file + ".new", self.file)

    def train(self, points):
        while self.step < self.steps:
            x0 = points[np.random.randint(len(points), size=self.batch_size)]
            t = np.random.randint(T, size=self.batch_size)
            noise = np.random.randn(self.batch_size, 2).astype(np.float32)
            a = self.alpha[t][:, None]
            xt = np.sqrt(a) * x0 + np.sqrt(1 - a) * noise
            predicted = self.model(torch.from_numpy(xt), torch.from_numpy(t))
            loss = (predicted - torch.from_numpy(noise)).square().mean()
            self.optim.zero_grad()
            loss.backward()
            self.optim.step()
            self.step += 1
            if self.step % 15 == 0:
                print(f"{self.step:5d} {loss.item():.4f}")
                self.save()


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.makedirs("ddpm", exist_ok=True)
    trainer = Trainer("ddpm")
    trainer.load()
    points = make_moons()
    trainer.train(points)
