"""Trains a network with SGD whose momentum changes at fixed steps."""

import argparse
import pathlib

import torch
from torch import nn
from torch.nn import functional as F

MILESTONES = {20: 0.8, 30: 0.95}
"""Momentum from a step onwards."""


def spirals(n=900):
    g = torch.Generator().manual_seed(0)
    label = torch.arange(n) % 3
    radius = torch.rand(n, generator=g)
    angle = 5 * radius + label * 2.094 + 0.15 * torch.randn(n, generator=g)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1) * 3, label


def model_and_optimizer(lr):
    torch.manual_seed(4)
    body = nn.Sequential(nn.Linear(2, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    head = nn.Linear(256, 3)
    groups = [{"params": body.parameters()}, {"params": head.parameters(), "lr": lr / 2}]
    return nn.Sequential(body, head), torch.optim.SGD(groups, lr=lr, momentum=0.3)


def restore_buffers(optimizer, saved):
    """Loads the momentum buffers into the groups of this run."""
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": saved["state"], "param_groups": current["param_groups"]})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=130)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("spirals"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.dir.mkdir(exist_ok=True)
    x, y = spirals()
    model, optimizer = model_and_optimizer(args.lr)
    last = args.dir / "last.pt"
    step = 0
    if last.exists():
        saved = torch.load(last)
        model.load_state_dict(saved["model"])
        restore_buffers(optimizer, saved["optimizer"])
        step = saved["step"]
    while step < args.steps:
        if step in MILESTONES:
            for group in optimizer.param_groups:
                group["momentum"] = MILESTONES[step]
        rows = torch.randint(0, len(x), (96,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 9 == 0 or step == args.steps:
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(saved, args.dir / "last.tmp")
            (args.dir / "last.tmp").replace(last)
            print(f"step {step}: {loss.item():.4f}")


if __name__ == "__main__":
    main()
