"""Trains a critic with spectral normalization to estimate a Wasserstein distance."""

import argparse
import os

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def critic(width=256):
    return nn.Sequential(
        spectral_norm(nn.Linear(32, width)), nn.ReLU(), spectral_norm(nn.Linear(width, width)), nn.ReLU(),
        spectral_norm(nn.Linear(width, 1)),
    )  # fmt: skip


def two_samples(step, n=96):
    g = torch.Generator().manual_seed(step)
    a = torch.randn(n, 32, generator=g)
    b = torch.randn(n, 32, generator=g)
    return a, b * 1.3 + 0.2 * b.flip(1)


def weights(model):
    """Returns the trained weights, on the CPU."""
    return {name: value.detach().cpu() for name, value in model.named_parameters()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--path", default="critic.pt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = critic()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.0, 0.9))
    step = 0
    if os.path.exists(args.path):
        state = torch.load(args.path)
        model.load_state_dict(state["weights"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    while step < args.steps:
        a, b = two_samples(step)
        loss = model(a).mean() - model(b).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 10 == 0:
            state = {"weights": weights(model), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, args.path + ".tmp")
            os.replace(args.path + ".tmp", args.path)
            print(f"{step}: distance {-loss.item():.4f}")


if __name__ == "__main__":
    main()
