"""Trains a highway network under float16 autocast on the CPU."""

import argparse
import os
import pathlib

import torch
from torch import nn


class Highway(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.transform, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x):
        g = torch.sigmoid(self.gate(x))
        return g * torch.relu(self.transform(x)) + (1 - g) * x


def build(width=512, depth=5, inputs=60, classes=8):
    return nn.Sequential(nn.Linear(inputs, width), *[Highway(width) for _ in range(depth)], nn.Linear(width, classes))


def fetch(step, size, inputs=60, classes=8):
    prototypes = torch.randn(classes, inputs, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(10_000 + step)
    y = torch.randint(0, classes, (size,), generator=g)
    return prototypes[y] + 2.5 * torch.randn(size, inputs, generator=g), y


def try_resume(path, model, optimizer, scaler):
    if not path.is_file():
        return 0
    checkpoint = torch.load(path, map_location="cpu")
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    if "scaler" in checkpoint:
        scaler.load_state_dict(checkpoint["scaler"])
    return checkpoint["step"]


def save_checkpoint(path, model, optimizer, scaler, step):
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    checkpoint["amp"] = scaler.state_dict()
    temporary = path.with_name("." + path.name)
    torch.save(checkpoint, temporary)
    os.replace(temporary, path)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--steps", type=int, default=120)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--path", type=pathlib.Path, default="highway.pt")
    a = p.parse_args()
    path = pathlib.Path(a.path)
    torch.set_num_threads(1)
    torch.manual_seed(6)
    model = build()
    optimizer = torch.optim.Adamax(model.parameters(), lr=a.lr)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=25)
    for step in range(try_resume(path, model, optimizer, scaler), a.steps):
        x, y = fetch(step, a.batch)
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if step % 10 == 9:
            save_checkpoint(path, model, optimizer, scaler, step + 1)
            print(step + 1, f"{loss.item():.4f}", f"{scaler.get_scale():.0f}")


if __name__ == "__main__":
    main()
