"""Fits a curve with L-BFGS on batches that change every few steps."""

import os

import torch
from torch import nn

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.2, max_iter=6, history_size=8)
order = torch.Generator().manual_seed(5)
x = torch.linspace(-3, 3, 600)[:, None]
y = torch.sin(2 * x) * torch.exp(-(x**2) / 4)
rows = torch.randperm(len(x), generator=order)[:200]
iteration = 0

if os.path.exists("lbfgs.pt"):
    checkpoint = torch.load("lbfgs.pt")
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    order.set_state(checkpoint["order"])
    rows = checkpoint["rows"]
    iteration = checkpoint["iteration"]


def closure():
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x[rows]), y[rows])
    loss.backward()
    return loss


while iteration < 60:
    loss = optimizer.step(closure)
    iteration += 1
    if iteration % 5 == 0:
        rows = torch.randperm(len(x), generator=order)[:200]
    if iteration % 4 == 0:
        checkpoint = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "order": order.get_state(),
            "rows": rows,
            "iteration": iteration,
        }
        torch.save(checkpoint, "lbfgs.pt.tmp")
        os.replace("lbfgs.pt.tmp", "lbfgs.pt")
        print(iteration, loss.item())
