"""Pretrains an encoder in the manner of BYOL with an online network and a slow target network."""

import argparse
import copy
import os

import torch
from torch import nn
from torch.nn import functional as F


def mlp(inputs, hidden, outputs):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Online(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), mlp(256, 512, 128))
        self.projector = mlp(128, 256, 64)
        self.predictor = mlp(64, 128, 64)

    def project(self, x):
        return self.projector(self.encoder(x))

    def forward(self, x):
        return self.predictor(self.project(x))


def regression(p, z):
    return 2 - 2 * F.cosine_similarity(p, z.detach(), dim=-1).mean()


def sample_views(step, size):
    g = torch.Generator().manual_seed(step * 7919 + 5)
    codes = torch.randn(size, 1, 4, 4, generator=g)
    image = F.interpolate(codes, scale_factor=4)
    first = image * (0.5 + torch.rand(size, 1, 1, 1, generator=g)) + 0.2 * torch.randn(image.shape, generator=g)
    second = image * (0.5 + torch.rand(size, 1, 1, 1, generator=g)) + 0.2 * torch.randn(image.shape, generator=g)
    return first, second


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tau", type=float, default=0.97)
    parser.add_argument("--work-dir", default="byol_work")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.steps)
    online = Online()
    target = copy.deepcopy(online)
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
    os.makedirs(args.work_dir, exist_ok=True)
    path = os.path.join(args.work_dir, "state.pt")
    step = 0
    if os.path.exists(path):
        state = torch.load(path)
        online.load_state_dict(state["online"])
        target.load_state_dict(state["online"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    while step < args.steps:
        a, b = sample_views(step, 64)
        with torch.no_grad():
            target_a, target_b = target.project(a), target.project(b)
        loss = regression(online(a), target_b) + regression(online(b), target_a)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.mul_(args.tau).add_(fast, alpha=1 - args.tau)
        step += 1
        if step % 11 == 0 or step == args.steps:
            state = {
                "online": online.state_dict(),
                "target": target.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
            }
            torch.save(state, path + ".new")
            os.replace(path + ".new", path)
            print(step, loss.item())


if __name__ == "__main__":
    main()
