"""Trains a denoiser with Accelerate. The noise grows after each phase in which the loss was low enough."""

import argparse
import json
import os
import shutil

import torch
from accelerate import Accelerator
from torch import nn


class NoiseCurriculum:
    """Raises the noise level when the smoothed loss falls below a share of the level."""

    def __init__(self, first=0.1, growth=1.15, share=0.9):
        self.level, self.growth, self.share = first, growth, share
        self.smoothed = None

    def update(self, loss):
        self.smoothed = loss if self.smoothed is None else 0.8 * self.smoothed + 0.2 * loss
        if self.smoothed < self.share * max(self.level, 0.35):
            self.level *= self.growth
            self.smoothed = None

    def state_dict(self):
        return {"level": self.level, "smoothed": self.smoothed}

    def load_state_dict(self, state):
        self.level, self.smoothed = state["level"], state["smoothed"]


def batch(step, level, size=128):
    g = torch.Generator().manual_seed(step)
    clean = torch.sin(torch.linspace(0, 6, 64) * (1 + 3 * torch.rand(size, 1, generator=g)))
    return clean + level * torch.randn(size, 64, generator=g), clean


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--project-dir", default="denoiser")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(2)
    accelerator = Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, args.steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    curriculum = NoiseCurriculum()
    os.makedirs(args.project_dir, exist_ok=True)
    pointer = os.path.join(args.project_dir, "latest.json")
    step = 0
    if os.path.exists(pointer):
        with open(pointer) as file:
            latest = json.load(file)
        accelerator.load_state(os.path.join(args.project_dir, latest["folder"]))
        step = latest["step"]
    while step < args.steps:
        noisy, clean = batch(step, curriculum.level)
        loss = nn.functional.l1_loss(model(noisy), clean)
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        curriculum.update(loss.item())
        step += 1
        if step % 9 == 0:
            folder = f"state_{step}"
            shutil.rmtree(os.path.join(args.project_dir, folder), ignore_errors=True)
            accelerator.save_state(os.path.join(args.project_dir, folder))
            with open(pointer + ".tmp", "w") as file:
                json.dump({"folder": folder, "step": step}, file)
            os.replace(pointer + ".tmp", pointer)
            accelerator.print(f"step {step} loss {loss.item():.4f} level {curriculum.level:.3f}")
    torch.save({"model": model.state_dict()}, os.path.join(args.project_dir, "final.pt"))


if __name__ == "__main__":
    main()
