"""Trains a small convolutional network on synthetic textures with a distributed sampler in one process."""

import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

EPOCHS = 6
CKPT = "checkpoints/fashion.pt"
torch.set_num_threads(1)
torch.manual_seed(7)


def textures(n=800, classes=5):
    g = torch.Generator().manual_seed(11)
    y = torch.randint(0, classes, (n,), generator=g)
    grid = torch.linspace(0, 6.28, 20)
    waves = torch.sin((y[:, None].float() + 1) * grid)
    x = waves[:, :, None] * waves[:, None, :] + 0.9 * torch.randn(n, 20, 20, generator=g)
    return TensorDataset(x[:, None], y)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 25, 5)

    def forward(self, x):
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc(x.flatten(1))


dataset = textures()
sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=3)
loader = DataLoader(dataset, batch_size=50, sampler=sampler, generator=torch.Generator().manual_seed(0))
net = Net()
opt = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9, nesterov=True)
sched = torch.optim.lr_scheduler.StepLR(opt, 2, gamma=0.5)

first_epoch = 0
os.makedirs("checkpoints", exist_ok=True)
if os.path.isfile(CKPT):
    saved = torch.load(CKPT, map_location="cpu")
    net.load_state_dict(saved["net"])
    opt.load_state_dict(saved["opt"])
    sched.load_state_dict(saved["sched"])
    first_epoch = saved["epoch"]
    print("resuming from epoch", first_epoch)

for n, epoch in enumerate(range(first_epoch, EPOCHS)):
    sampler.set_epoch(n)
    total = 0.0
    for x, y in loader:
        opt.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        total += loss.item()
    sched.step()
    print(f"epoch {epoch}: {total / len(loader):.4f}")
    torch.save(
        {"net": net.state_dict(), "opt": opt.state_dict(), "sched": sched.state_dict(), "epoch": epoch + 1},
        CKPT + ".part",
    )
    os.replace(CKPT + ".part", CKPT)
