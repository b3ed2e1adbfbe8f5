"""Trains a classifier on two moons until the validation loss has not improved for some evaluations."""

import argparse
import math
import os

import torch
from torch import nn


def moons(n, seed, noise=0.35):
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (n,), generator=g)
    angle = math.pi * torch.rand(n, generator=g)
    sign = 1 - 2 * label.float()
    points = torch.stack([sign * angle.cos() + 0.5 * label, sign * angle.sin() + 0.25 * label], 1)
    return points + noise * torch.randn(n, 2, generator=g), label


class EarlyStopping:
    def __init__(self, patience, min_delta=0.0):
        self.patience, self.min_delta = patience, min_delta
        self.best = math.inf
        self.waited = 0

    def should_stop(self, value):
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-steps", type=int, default=400)
    parser.add_argument("--eval-every", type=int, default=5)
    parser.add_argument("--patience", type=int, default=14)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = moons(60, seed=0)
    x_val, y_val = moons(400, seed=1)
    net = nn.Sequential(nn.Linear(2, 384), nn.ReLU(), nn.Linear(384, 384), nn.ReLU(), nn.Linear(384, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    stopping = EarlyStopping(args.patience)
    step, stopped = 0, False
    if os.path.exists("moons.pt"):
        state = torch.load("moons.pt")
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        step, stopped = state["step"], state["stopped"]
    while step < args.max_steps and not stopped:
        rows = torch.randint(0, len(x), (48,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % args.eval_every == 0:
            with torch.no_grad():
                val_loss = nn.functional.cross_entropy(net(x_val), y_val).item()
            stopped = stopping.should_stop(val_loss)
            print(f"step {step} train {loss.item():.4f} val {val_loss:.4f} waited {stopping.waited}")
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "stopped": stopped}
            torch.save(state, "moons.tmp")
            os.replace("moons.tmp", "moons.pt")


if __name__ == "__main__":
    main()
