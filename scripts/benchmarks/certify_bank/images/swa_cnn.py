"""Trains a network on synthetic scans and averages its weights from a quarter of the run onwards."""

import os
import sys

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

torch.set_num_threads(1)

TOTAL_STEPS = int(os.environ.get("TOTAL_STEPS", "120"))
SWA_START = TOTAL_STEPS // 4
SAVE = 7


def scans(step, batch=24):
    """Returns noisy vertical or horizontal gradients with a label."""
    g = torch.Generator().manual_seed(31 * step + 1)
    labels = torch.randint(0, 4, (batch,), generator=g)
    ramp = torch.linspace(-1, 1, 20)
    vertical = ramp[:, None].expand(20, 20)
    bank = torch.stack([vertical, -vertical, vertical.T, -vertical.T])
    return (bank[labels] + 1.2 * torch.randn(batch, 20, 20, generator=g))[:, None], labels


def make_model():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.GroupNorm(4, 32),
        nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 4),
    )  # fmt: skip


def snapshot(path, **objects):
    torch.save({key: value.state_dict() if hasattr(value, "state_dict") else value for key, value in objects.items()},
               path + ".tmp")  # fmt: skip
    os.replace(path + ".tmp", path)


def main():
    torch.manual_seed(2024)
    model = make_model()
    averaged = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=SWA_START * 2, eta_min=0.005)
    begin = 0
    if os.path.exists("swa_state.pt"):
        state = torch.load("swa_state.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        begin = state["step"]
        sys.stderr.write(f"continuing from step {begin}\n")
    for step in range(begin, TOTAL_STEPS):
        x, y = scans(step)
        loss = nn.functional.cross_entropy(model(x), y, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= SWA_START and step % 2 == 0:
            averaged.update_parameters(model)
        if (step + 1) % SAVE == 0:
            snapshot("swa_state.pt", model=model, optimizer=optimizer, schedule=schedule, step=step + 1)
    torch.save({"swa": averaged.module.state_dict(), "last": model.state_dict()}, "swa_final.pt")


if __name__ == "__main__":
    main()
