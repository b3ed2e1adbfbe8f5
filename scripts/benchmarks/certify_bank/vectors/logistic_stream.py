"""Trains a wide logistic regression with random Fourier features, a warm-up and a shuffled DataLoader."""

import argparse
import os
import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def get_states():
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_states(states):
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


class FourierFeatures(nn.Module):
    """Random features. They are not trained, and the state dict contains them."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.register_buffer("weight", torch.randn(inputs, outputs))
        self.register_buffer("shift", 6.28 * torch.rand(outputs))

    def forward(self, x):
        return torch.cos(x @ self.weight + self.shift)


def dataset(count=1500):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 6)).astype(np.float32)
    return TensorDataset(torch.from_numpy(x), torch.from_numpy((np.sin(3 * x[:, 0]) > x[:, 1]).astype(np.float32)))


def main(args):
    torch.set_num_threads(1)
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    model = nn.Sequential(FourierFeatures(6, 768), nn.Dropout(0.2), nn.Linear(768, 256), nn.ReLU(), nn.Linear(256, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=20)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], milestones=[20])
    loader = DataLoader(dataset(), batch_size=60, shuffle=True)
    first = 0
    if os.path.exists(args.ckpt):
        state = torch.load(args.ckpt, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        first = state["epoch"]
        set_states(state["random"])
    for epoch in range(first, args.epochs):
        for x, y in loader:
            noisy = x + float(np.random.normal(0, 0.01)) + random.gauss(0, 0.01)
            loss = nn.functional.binary_cross_entropy_with_logits(model(noisy)[:, 0], y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "random": get_states(),
            "epoch": epoch + 1,
        }
        torch.save(state, args.ckpt + ".tmp")
        os.replace(args.ckpt + ".tmp", args.ckpt)
        print(f"epoch {epoch}: {loss.item():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=9)
    parser.add_argument("--ckpt", default="fourier.pt")
    main(parser.parse_args())
