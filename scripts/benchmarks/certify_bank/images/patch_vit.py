"""Trains a small vision transformer with dropout, random erasing, a warm-up and an average of its weights."""

import argparse
import copy
import math
import os
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class ViT(nn.Module):
    def __init__(self, size=20, patch=4, width=48, depth=2, classes=6, dropout=0.1):
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(width, 4, 96, dropout=dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.encoder(tokens).mean(1))


def images(n=640):
    g = torch.Generator().manual_seed(8)
    y = torch.randint(0, 6, (n,), generator=g)
    x = torch.randn(n, 1, 20, 20, generator=g)
    x[torch.arange(n), 0, :, y * 3] += 1.2
    return x, y


def erase(batch):
    batch = batch.clone()
    for image in batch:
        if random.random() < 0.3:
            row = np.random.randint(0, 16)
            image[:, row : row + 4] = 0
    return batch


def rng_states():
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}


def set_rng_states(states):
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])


def main(args):
    torch.set_num_threads(1)
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    x, y = images()
    model = ViT()
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 15) * 0.5 * (1 + math.cos(math.pi * s / args.steps))
    )
    objects = {"model": model, "ema": ema, "optimizer": optimizer, "schedule": schedule}
    step, order = 0, torch.randperm(len(x))
    if os.path.exists(args.file):
        saved = torch.load(args.file, weights_only=False)
        for name, value in objects.items():
            value.load_state_dict(saved[name])
        step, order = saved["step"], saved["order"]
        set_rng_states(saved["rng"])
    per_epoch = len(x) // args.batch
    while step < args.steps:
        position = step % per_epoch
        rows = order[position * args.batch : (position + 1) * args.batch]
        loss = F.cross_entropy(model(erase(x[rows])), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for average, value in zip(ema.parameters(), model.parameters(), strict=True):
                average.lerp_(value, 0.05)
        step += 1
        if step % per_epoch == 0:
            order = torch.randperm(len(x))
        if step % args.every == 0 or step == args.steps:
            saved = {name: value.state_dict() for name, value in objects.items()}
            torch.save({**saved, "step": step, "order": order, "rng": rng_states()}, args.file + ".tmp")
            os.replace(args.file + ".tmp", args.file)


if __name__ == "__main__":
    cli = argparse.ArgumentParser()
    cli.add_argument("--steps", type=int, default=90)
    cli.add_argument("--batch", type=int, default=20)
    cli.add_argument("--every", type=int, default=7)
    cli.add_argument("--seed", type=int, default=3)
    cli.add_argument("--file", default="vit.pt")
    main(cli.parse_args())
