"""Trains a classifier of color patches with mixup."""

import argparse
import os
import random

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


def patches(n=960):
    g = torch.Generator().manual_seed(9)
    y = torch.randint(0, 8, (n,), generator=g)
    hue = torch.stack([y & 1, (y >> 1) & 1, (y >> 2) & 1], dim=1).float()
    x = hue[:, :, None, None] + 1.5 * torch.randn(n, 3, 16, 16, generator=g)
    return TensorDataset(x, y)


def mixup(x, y, alpha=0.4):
    """Mixes each image with another one of the batch."""
    lam = float(np.random.beta(alpha, alpha))
    index = torch.from_numpy(np.random.permutation(len(x)))
    return lam * x + (1 - lam) * x[index], y, y[index], lam


def main(args):
    torch.set_num_threads(1)
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 32, 3, stride=2), nn.SiLU(), nn.Flatten(),
        nn.Linear(32 * 49, 8),
    )  # fmt: skip
    opt = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    epoch0 = 0
    if os.path.exists(args.ckpt):
        ck = torch.load(args.ckpt, weights_only=False)
        model.load_state_dict(ck["state_dict"])
        opt.load_state_dict(ck["optimizer"])
        torch.set_rng_state(ck["torch_rng"])
        random.setstate(ck["python_rng"])
        epoch0 = ck["epoch"]
    loader = DataLoader(patches(), batch_size=64, shuffle=True)  # shuffles with torch's global state
    for epoch in range(epoch0, args.epochs):
        for x, y in loader:
            x, y_a, y_b, lam = mixup(x, y)
            out = model(x)
            loss = lam * cross_entropy(out, y_a) + (1 - lam) * cross_entropy(out, y_b)
            opt.zero_grad()
            loss.backward()
            opt.step()
        ck = {
            "state_dict": model.state_dict(),
            "optimizer": opt.state_dict(),
            "epoch": epoch + 1,
            "torch_rng": torch.get_rng_state(),
            "python_rng": random.getstate(),
        }
        torch.save(ck, args.ckpt + ".tmp")
        os.replace(args.ckpt + ".tmp", args.ckpt)
        print(f"[{epoch + 1}/{args.epochs}] {loss.item():.4f}")


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--epochs", type=int, default=7)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--seed", type=int, default=17)
    p.add_argument("--ckpt", default="mixup.ckpt")
    main(p.parse_args())
