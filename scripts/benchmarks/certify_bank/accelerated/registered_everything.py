"""Trains a network in Accelerate. All other objects of the run are registered for checkpoints."""

import copy
import os
import shutil

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn


class Average:
    def __init__(self, model, decay=0.97):
        self.copy, self.decay = copy.deepcopy(model).requires_grad_(False), decay

    def update(self, model):
        for slow, fast in zip(self.copy.parameters(), model.parameters(), strict=True):
            slow.data.lerp_(fast.data, 1 - self.decay)

    def state_dict(self):
        return self.copy.state_dict()

    def load_state_dict(self, state):
        self.copy.load_state_dict(state)


class Data:
    """Shuffles indices with its own generator at the start of each epoch."""

    def __init__(self, count=2000, batch=100):
        g = torch.Generator().manual_seed(77)
        self.x = torch.randn(count, 40, generator=g)
        self.y = (self.x[:, :2].prod(1) > 0).long() + (self.x[:, 2] > 0).long()
        self.batch, self.step = batch, 0
        self.generator = torch.Generator().manual_seed(78)
        self.order = None

    def next(self):
        position = self.step % (len(self.x) // self.batch)
        if position == 0:
            self.order = torch.randperm(len(self.x), generator=self.generator)
        rows = self.order[position * self.batch : (position + 1) * self.batch]
        self.step += 1
        return self.x[rows], self.y[rows]

    def state_dict(self):
        return {"step": self.step, "generator": self.generator.get_state(), "order": self.order}

    def load_state_dict(self, state):
        self.step, self.order = state["step"], state["order"]
        self.generator.set_state(state["generator"])


class FreezeHead:
    """Freezes the first layer for a while."""

    def __init__(self, layer, until):
        self.layer, self.until, self.calls = layer, until, 0

    def step(self):
        self.layer.requires_grad_(self.calls >= self.until)
        self.calls += 1

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def main(steps=110, folder="registered"):
    torch.set_num_threads(1)
    set_seed(40)
    os.makedirs(folder, exist_ok=True)
    accelerator = Accelerator(cpu=True)
    model = nn.Sequential(
        nn.Linear(40, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 384), nn.ReLU(), nn.Linear(384, 3)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=30)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    average, data, freeze = Average(model), Data(), FreezeHead(model[0], until=25)
    accelerator.register_for_checkpointing(average, data, freeze)
    complete = sorted(name for name in os.listdir(folder) if name.startswith("at_"))
    if complete:
        accelerator.load_state(os.path.join(folder, complete[-1]))
    while data.step < steps:
        freeze.step()
        x, y = data.next()
        loss = nn.functional.cross_entropy(model(x), y)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        average.update(model)
        if data.step % 8 == 0:
            shutil.rmtree(os.path.join(folder, "new"), ignore_errors=True)
            accelerator.save_state(os.path.join(folder, "new"))
            os.replace(os.path.join(folder, "new"), os.path.join(folder, f"at_{data.step:04d}"))
    torch.save({"model": model.state_dict(), "average": average.state_dict()}, os.path.join(folder, "final.pt"))


if __name__ == "__main__":
    main()
