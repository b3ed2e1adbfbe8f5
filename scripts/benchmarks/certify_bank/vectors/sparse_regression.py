"""Trains a network on many features, few of which matter, with a weight decay that follows a cosine."""

import argparse
import math
import os

import torch
from torch import nn


class CosineWeightDecay:
    """Changes the weight decay of all parameter groups from ``first`` to ``last``."""

    def __init__(self, optimizer, first, last, total):
        self.optimizer = optimizer
        self.first, self.last, self.total = first, last, total
        self.t = 0

    def step(self):
        self.t += 1
        share = (1 + math.cos(math.pi * min(1.0, self.t / self.total))) / 2
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.last + (self.first - self.last) * share


def problem(n=1200, d=300):
    g = torch.Generator().manual_seed(12)
    x = torch.randn(n, d, generator=g)
    weights = torch.zeros(d)
    weights[:10] = torch.randn(10, generator=g)
    return x, (x @ weights).sin() + 0.1 * torch.randn(n, generator=g)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=140)
    parser.add_argument("--wd", type=float, nargs=2, default=(0.5, 5.0), metavar=("FIRST", "LAST"))
    parser.add_argument("--save-to", default="sparse/last.pt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.makedirs(os.path.dirname(args.save_to), exist_ok=True)
    x, y = problem()
    net = nn.Sequential(nn.Linear(300, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 1))
    opt = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=args.wd[0])
    lr_schedule = torch.optim.lr_scheduler.PolynomialLR(opt, total_iters=args.steps, power=1.0)
    wd_schedule = CosineWeightDecay(opt, *args.wd, total=args.steps)
    begin = 0
    if os.path.exists(args.save_to):
        data = torch.load(args.save_to)
        net.load_state_dict(data["net"])
        opt.load_state_dict(data["opt"])
        lr_schedule.load_state_dict(data["lr_schedule"])
        begin = data["step"]
    for step in range(begin, args.steps):
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(step))[:128]
        loss = nn.functional.mse_loss(net(x[rows])[:, 0], y[rows])
        opt.zero_grad()
        loss.backward()
        opt.step()
        lr_schedule.step()
        wd_schedule.step()
        if (step + 1) % 11 == 0 or step + 1 == args.steps:
            data = {"net": net.state_dict(), "opt": opt.state_dict(), "lr_schedule": lr_schedule.state_dict()}
            torch.save({**data, "step": step + 1}, args.save_to + ".tmp")
            os.replace(args.save_to + ".tmp", args.save_to)
            print(f"{step + 1}: {loss.item():.4f} weight decay {opt.param_groups[0]['weight_decay']:.3f}")


if __name__ == "__main__":
    main()
