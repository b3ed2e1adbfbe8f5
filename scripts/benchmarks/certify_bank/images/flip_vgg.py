"""Trains a small VGG on oriented gratings with random erasing and brightness jitter drawn in Python."""

import math
import random
from pathlib import Path

import numpy as np
import torch
from torch import nn, optim


class Config:
    seed = 1234
    steps = 100
    batch_size = 32
    lr = 0.01
    interval = 8
    folder = Path("vgg_flip")


def gratings(count):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, count)
    rows, columns = np.mgrid[0:24, 0:24]
    angles = labels * math.pi / 6
    phase = rng.uniform(0, 6.28, count)
    wave = np.sin(
        0.8 * (np.cos(angles)[:, None, None] * rows + np.sin(angles)[:, None, None] * columns) + phase[:, None, None]
    )
    images = wave + rng.normal(0, 0.8, wave.shape)
    return torch.tensor(images[:, None], dtype=torch.float32), torch.tensor(labels)


def augment(batch):
    out = batch.clone()
    for image in out:
        if random.random() < 0.5:
            top, left = random.randrange(16), random.randrange(16)
            image[:, top : top + 8, left : left + 8] = 0
        image.mul_(random.uniform(0.7, 1.3))
    return out


def vgg(classes=6):
    layers, channels = [], 1
    for width in (12, 24):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 36, 64), nn.ReLU(), nn.Linear(64, classes))


def set_seed(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def save_checkpoint(path, **state):
    state["rng"] = {"numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def restore_rng(rng):
    np.random.set_state(rng["numpy"])
    torch.set_rng_state(rng["torch"])


def train(cfg):
    torch.set_num_threads(1)
    set_seed(cfg.seed)
    images, labels = gratings(900)
    model = vgg()
    optimizer = optim.SGD(model.parameters(), lr=cfg.lr, momentum=0.9)
    path = cfg.folder / "checkpoint.pt"
    cfg.folder.mkdir(exist_ok=True)
    step = 0
    if path.is_file():
        state = torch.load(path, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        restore_rng(state["rng"])
    while step < cfg.steps:
        rows = torch.randint(len(images), (cfg.batch_size,))
        loss = nn.functional.cross_entropy(model(augment(images[rows])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % cfg.interval == 0 or step == cfg.steps:
            save_checkpoint(path, model=model.state_dict(), optimizer=optimizer.state_dict(), step=step)


train(Config())
