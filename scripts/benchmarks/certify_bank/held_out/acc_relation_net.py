"""Accelerate: learns relations between pairs of objects. Resumes within an epoch."""

import os
import shutil
from glob import glob

import torch
from accelerate import Accelerator
from accelerate.data_loader import skip_first_batches
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH, EPOCHS, SAVE_EVERY, ROOT = 40, 5, 8, "relations"


def scenes(n=800, objects=5):
    g = torch.Generator().manual_seed(3)
    x = torch.rand(n, objects, 4, generator=g)
    distance = torch.cdist(x[..., :2], x[..., :2]) + 9 * torch.eye(objects)
    return TensorDataset(x, distance.flatten(1).argmin(1) % objects)


class RelationNet(nn.Module):
    def __init__(self, width=384):
        super().__init__()
        self.g = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.f = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))

    def forward(self, x):
        n = x.shape[1]
        left, right = x[:, :, None].expand(-1, n, n, -1), x[:, None].expand(-1, n, n, -1)
        return self.f(self.g(torch.cat([left, right], -1)).sum((1, 2)))


def newest():
    found = glob(f"{ROOT}/state-*")
    return max(found, key=lambda name: int(name.split("-")[1])) if found else None


def main():
    torch.set_num_threads(1)
    torch.manual_seed(30)
    config = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=30)
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    os.makedirs(ROOT, exist_ok=True)
    net = RelationNet()
    loader = DataLoader(scenes(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(30))
    net, optimizer, loader = accelerator.prepare(net, torch.optim.RAdam(net.parameters(), lr=2e-3), loader)
    per_epoch = len(loader)
    step = 0
    if newest() is not None:
        step = int(newest().split("-")[1])
        accelerator.load_state(newest())
    first_epoch, skip = divmod(step, per_epoch)
    for epoch in range(first_epoch, EPOCHS):
        if epoch == first_epoch and skip:
            batches = skip_first_batches(loader, skip)
        else:
            batches = loader
            batches.set_epoch(epoch)
        for x, y in batches:
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            if step % SAVE_EVERY == 0:
                shutil.rmtree(f"{ROOT}/unfinished", ignore_errors=True)
                accelerator.save_state(f"{ROOT}/unfinished")
                os.replace(f"{ROOT}/unfinished", f"{ROOT}/state-{step}")
        accelerator.print(epoch, round(loss.item(), 4))
    torch.save({"net": net.state_dict()}, f"{ROOT}/final.pt")


if __name__ == "__main__":
    main()
