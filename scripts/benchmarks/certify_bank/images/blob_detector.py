"""Trains a network to locate a bright blob; random crops and flips augment the images."""

import argparse
import os

import numpy as np
import torch
from torch import nn


def render(rng, n):
    """Renders images with one blob each and returns the images and the centers in [0, 1]."""
    centers = rng.uniform(8, 24, size=(n, 2))
    axis = np.arange(32)
    dy = (axis[None, :, None] - centers[:, 0, None, None]) ** 2
    dx = (axis[None, None, :] - centers[:, 1, None, None]) ** 2
    images = np.exp(-(dx + dy) / 12) + 0.3 * rng.standard_normal((n, 32, 32))
    return images.astype(np.float32), (centers / 32).astype(np.float32)


class Augment:
    """Shifts and flips images and their targets."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, images, targets):
        images, targets = images.copy(), targets.copy()
        for i in range(len(images)):
            shift = self.rng.integers(-4, 5, size=2)
            images[i] = np.roll(images[i], shift, axis=(0, 1))
            targets[i] += shift / 32
            if self.rng.random() < 0.5:
                images[i] = images[i][:, ::-1]
                targets[i, 1] = 31 / 32 - targets[i, 1]
        return torch.from_numpy(images)[:, None], torch.from_numpy(targets)


def network():
    return nn.Sequential(
        nn.Conv2d(1, 12, 5, stride=2, padding=2), nn.GELU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.GELU(),
        nn.Flatten(), nn.Linear(24 * 64, 64), nn.GELU(), nn.Linear(64, 2),
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--dir", default="blob_ckpt")
    opts = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.makedirs(opts.dir, exist_ok=True)
    images, targets = render(np.random.default_rng(0), 1000)
    augment = Augment(seed=1)
    model = network()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-4, momentum=0.5)
    latest = os.path.join(opts.dir, "latest.pt")
    begin = 0
    if os.path.exists(latest):
        checkpoint = torch.load(latest, weights_only=False)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        begin = checkpoint["step"]
    for step in range(begin, opts.steps):
        epoch, position = divmod(step, len(images) // opts.batch)
        order = np.random.default_rng([epoch, 77]).permutation(len(images))
        rows = order[position * opts.batch : (position + 1) * opts.batch]
        x, y = augment(images[rows], targets[rows])
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 9 == 0 or step + 1 == opts.steps:
            checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(checkpoint, latest + "~")
            os.replace(latest + "~", latest)
            print(f"{step + 1}/{opts.steps} mse {loss.item():.5f}", flush=True)
