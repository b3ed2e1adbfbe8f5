"""Trains an encoder with a projection head on pairs of views with Accelerate."""

import json
import os
import shutil

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(100, 512), nn.ReLU(), nn.Linear(512, 64))

    def forward(self, x):
        return self.net(x)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 384), nn.ReLU(), nn.Linear(384, 32))

    def forward(self, x):
        return F.normalize(self.net(x), dim=1)


def views(step, size=128):
    g = torch.Generator().manual_seed(step)
    center = torch.randn(size, 10, generator=g) @ torch.randn(10, 100, generator=torch.Generator().manual_seed(1))
    return center + torch.randn(size, 100, generator=g), center + torch.randn(size, 100, generator=g)


def contrast(a, b, temperature=0.2):
    logits = a @ b.T / temperature
    return F.cross_entropy(logits, torch.arange(len(a)))


class Checkpointer:
    def __init__(self, folder, encoder, head, optimizer):
        self.folder = folder
        self.modules = {"encoder": encoder}
        self.head, self.optimizer = head, optimizer

    def save(self, step):
        temporary = self.folder + ".tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        os.makedirs(temporary)
        for name, module in self.modules.items():
            save_file(module.state_dict(), os.path.join(temporary, f"{name}.safetensors"))
        torch.save(self.optimizer.state_dict(), os.path.join(temporary, "optimizer.bin"))
        with open(os.path.join(temporary, "progress.json"), "w") as file:
            json.dump({"step": step}, file)
        os.makedirs(self.folder, exist_ok=True)
        os.replace(temporary, os.path.join(self.folder, f"{step:05d}"))

    def load(self):
        names = sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []
        if not names:
            return 0
        newest = os.path.join(self.folder, names[-1])
        for name, module in self.modules.items():
            module.load_state_dict(load_file(os.path.join(newest, f"{name}.safetensors")))
        self.optimizer.load_state_dict(torch.load(os.path.join(newest, "optimizer.bin")))
        with open(os.path.join(newest, "progress.json")) as file:
            return json.load(file)["step"]


def main(steps=110):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    encoder, head = Encoder(), Head()
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-3)
    encoder, head, optimizer = accelerator.prepare(encoder, head, optimizer)
    checkpoints = Checkpointer("contrastive_states", encoder, head, optimizer)
    for step in range(checkpoints.load(), steps):
        a, b = views(step)
        loss = contrast(head(encoder(a)), head(encoder(b)))
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        if (step + 1) % 8 == 0:
            checkpoints.save(step + 1)
            accelerator.print(f"step {step + 1}: {loss.item():.4f}")
    torch.save({"encoder": encoder.state_dict(), "head": head.state_dict()}, "contrastive_final.pt")


if __name__ == "__main__":
    main()
