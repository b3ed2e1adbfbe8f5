"""Segments discs with a small U-Net and a one-cycle schedule."""

import os
import sys

import torch
import torch.nn.functional as F
from torch import nn


def double_conv(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(4, o), nn.ReLU(inplace=True))


class UNet(nn.Module):
    def __init__(self, c=32):
        super().__init__()
        self.d1, self.d2, self.mid = double_conv(1, c), double_conv(c, 2 * c), double_conv(2 * c, 2 * c)
        self.u2, self.u1 = double_conv(4 * c, c), double_conv(2 * c, c)
        self.final = nn.Conv2d(c, 1, 1)

    def forward(self, x):
        a = self.d1(x)
        b = self.d2(F.max_pool2d(a, 2))
        m = self.mid(F.max_pool2d(b, 2))
        y = self.u2(torch.cat([F.interpolate(m, scale_factor=2), b], 1))
        y = self.u1(torch.cat([F.interpolate(y, scale_factor=2), a], 1))
        return self.final(y)


def sample(idx, n=8, side=24):
    g = torch.Generator().manual_seed(idx)
    ax = torch.arange(side)
    cy, cx = torch.randint(5, side - 5, (2, n, 1, 1), generator=g)
    radius = torch.randint(3, 8, (n, 1, 1), generator=g)
    mask = ((ax[:, None] - cy) ** 2 + (ax[None, :] - cx) ** 2 < radius**2).float()[:, None]
    return mask + torch.randn(n, 1, side, side, generator=g), mask


def dice_loss(logits, mask):
    p = logits.sigmoid()
    return 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)


torch.set_num_threads(1)
torch.manual_seed(0)
total, every, checkpoint = 160, 10, "unet.tar"
net = UNet()
optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, nesterov=True)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=total + 1)
iteration = 0

if os.path.exists(checkpoint):
    tar = torch.load(checkpoint)
    iteration = tar["iteration"]
    net.load_state_dict(tar["net"])
    optimizer.load_state_dict(tar["optimizer"])
    scheduler.load_state_dict(tar["scheduler"])

while iteration < total:
    image, mask = sample(iteration)
    logits = net(image)
    loss = dice_loss(logits, mask) + F.binary_cross_entropy_with_logits(logits, mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    iteration += 1
    if iteration % every == 0:
        tar = {
            "iteration": iteration,
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        }
        torch.save(tar, checkpoint + ".tmp")
        os.replace(checkpoint + ".tmp", checkpoint)
        sys.stdout.write(f"{iteration}: loss {loss.item():.4f} lr {optimizer.param_groups[0]['lr']:.4f}\n")
    scheduler.step()
