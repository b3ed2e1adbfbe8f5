"""Trains a GAN on a ring of Gaussians."""

import argparse
import math
from pathlib import Path

import torch
from torch import nn


def real_batch(step, n):
    g = torch.Generator().manual_seed(step)
    angle = torch.randint(0, 8, (n,), generator=g) * math.pi / 4
    center = torch.stack([angle.cos(), angle.sin()], 1)
    return center + 0.05 * torch.randn(n, 2, generator=g), torch.randn(n, 16, generator=g)


def mlp(*sizes):
    layers = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--iters", type=int, default=90)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("gan"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    args.out.mkdir(exist_ok=True)
    netG, netD = mlp(16, 192, 192, 2), mlp(2, 192, 192, 1)
    optG = torch.optim.Adam(netG.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optD = torch.optim.Adam(netD.parameters(), lr=4e-4, betas=(0.5, 0.999))
    bce = nn.BCEWithLogitsLoss()
    latest = args.out / "latest.pth"
    start = 0
    if latest.exists():
        ck = torch.load(latest)
        netG.load_state_dict(ck["netG"])
        netD.load_state_dict(ck["netD"])
        optG.load_state_dict(ck["optG"])
        start = ck["iter"]
    ones, zeros = torch.ones(args.batch, 1), torch.zeros(args.batch, 1)
    for it in range(start, args.iters):
        real, noise = real_batch(it, args.batch)
        fake = netG(noise)
        loss_d = bce(netD(real), ones) + bce(netD(fake.detach()), zeros)
        optD.zero_grad()
        loss_d.backward()
        optD.step()
        loss_g = bce(netD(fake), ones)
        optG.zero_grad()
        loss_g.backward()
        optG.step()
        if (it + 1) % 8 == 0 or it + 1 == args.iters:
            ck = {"netG": netG.state_dict(), "netD": netD.state_dict(), "optG": optG.state_dict(), "iter": it + 1}
            torch.save(ck, args.out / "latest.tmp")
            (args.out / "latest.tmp").replace(latest)
            print(f"[{it + 1}] D {loss_d.item():.3f} G {loss_g.item():.3f}")


if __name__ == "__main__":
    main()
