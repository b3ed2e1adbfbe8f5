"""Trains a robust regression whose gradient clipping follows the history of gradient norms (AutoClip)."""

import os

import numpy as np
import torch
from torch import nn


class AutoClip:
    """Clips gradients to a percentile of all norms so far."""

    def __init__(self, percentile=30):
        self.percentile = percentile
        self.history = []

    def __call__(self, parameters):
        parameters = list(parameters)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters]).item()
        self.history.append(norm)
        limit = float(np.percentile(self.history, self.percentile))
        nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(norm))


class Run:
    directory = "robust"
    steps = 130

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(20, 256), nn.ELU(), nn.Linear(256, 192), nn.ELU(), nn.Linear(192, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.5)
        self.clip = AutoClip()
        self.step = 0
        g = torch.Generator().manual_seed(1)
        self.truth = torch.randn(20, generator=g)

    @property
    def path(self):
        return os.path.join(self.directory, "run.pt")

    def data(self):
        g = torch.Generator().manual_seed(self.step)
        x = torch.randn(80, 20, generator=g)
        noise = torch.randn(80, generator=g)
        return x, torch.tanh(x @ self.truth) + 0.1 * noise * torch.exp(torch.randn(80, generator=g))

    def resume(self):
        if not os.path.exists(self.path):
            return
        state = torch.load(self.path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def save(self):
        os.makedirs(self.directory, exist_ok=True)
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, self.path + ".tmp")
        os.replace(self.path + ".tmp", self.path)

    def train(self):
        while self.step < self.steps:
            x, y = self.data()
            loss = nn.functional.mse_loss(self.model(x)[:, 0], y)
            self.optimizer.zero_grad()
            loss.backward()
            self.clip(self.model.parameters())
            self.optimizer.step()
            self.step += 1
            if self.step % 10 == 0:
                self.save()
                print(f"{self.step:4d} {loss.item():.4f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run = Run()
    run.resume()
    run.train()
