"""Trains a bag-of-symbols language model with Accelerate's gradient accumulation."""

import os
import shutil

import torch
from accelerate import Accelerator
from torch import nn

torch.set_num_threads(1)

ROOT = "accumulating_lm"
MICRO_BATCHES, EVERY = 180, 14


class Model(nn.Module):
    def __init__(self, symbols=40, width=256):
        super().__init__()
        self.embed = nn.EmbeddingBag(symbols, width, mode="mean")
        self.net = nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, symbols))

    def forward(self, ids):
        return self.net(self.embed(ids))


class Progress:
    """Position of the run and the gradients of the current accumulation window."""

    def __init__(self, accelerator, model):
        self.accelerator, self.model = accelerator, model
        self.done = 0
        self.names = ["done"]

    def state_dict(self):
        gradients = [p.grad for p in self.model.parameters()]
        everything = {"done": self.done, "accelerator_step": self.accelerator.step, "gradients": gradients}
        return {name: everything[name] for name in self.names}

    def load_state_dict(self, state):
        self.done = state["done"]
        self.accelerator.step = state.get("accelerator_step", self.done)
        for parameter, gradient in zip(self.model.parameters(), state.get("gradients", []), strict=False):
            parameter.grad = gradient


def micro_batch(index, size=96):
    g = torch.Generator().manual_seed(index)
    start = torch.randint(0, 40, (size, 1), generator=g)
    stride = torch.randint(1, 4, (size, 1), generator=g)
    ids = (start + stride * torch.arange(7)) % 40
    return ids[:, :-1], ids[:, -1]


def main():
    torch.manual_seed(0)
    os.makedirs(ROOT, exist_ok=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    progress = Progress(accelerator, model)
    accelerator.register_for_checkpointing(progress)
    states = sorted(name for name in os.listdir(ROOT) if name.startswith("state-"))
    if states:
        accelerator.load_state(os.path.join(ROOT, states[-1]))
        accelerator.print(f"loaded {states[-1]}")
    while progress.done < MICRO_BATCHES:
        ids, target = micro_batch(progress.done)
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(ids), target)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        progress.done += 1
        if progress.done % EVERY == 0:
            temporary = os.path.join(ROOT, "incomplete")
            shutil.rmtree(temporary, ignore_errors=True)
            accelerator.save_state(temporary)
            os.replace(temporary, os.path.join(ROOT, f"state-{progress.done:04d}"))
    torch.save({"model": model.state_dict()}, os.path.join(ROOT, "final.pt"))


if __name__ == "__main__":
    main()
