"""Fits a sum of sines and divides the learning rate when the validation loss does not improve."""

from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

EPOCHS = 26
FOLDER = Path("sines")


def signal(x):
    return torch.sin(3 * x) + 0.5 * torch.sin(11 * x + 1)


def epoch_data(epoch):
    g = torch.Generator().manual_seed(epoch)
    x = 4 * torch.rand(256, 1, generator=g) - 2
    return x, signal(x) + 0.4 * torch.randn(256, 1, generator=g)


def validate(model):
    x = torch.linspace(-2, 2, 200)[:, None]
    with torch.no_grad():
        return nn.functional.mse_loss(model(x), signal(x)).item()


def fit():
    torch.set_num_threads(1)
    torch.manual_seed(1)
    FOLDER.mkdir(exist_ok=True)
    model = nn.Sequential(nn.Linear(1, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    plateau = ReduceLROnPlateau(optimizer, factor=0.6, patience=1, threshold=0.02)
    file = FOLDER / "fit.pt"
    epoch = 0
    if file.exists():
        content = torch.load(file)
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        epoch = content["epoch"]
    while epoch < EPOCHS:
        x, y = epoch_data(epoch)
        for rows in torch.arange(len(x)).split(64):
            loss = nn.functional.mse_loss(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        error = validate(model)
        plateau.step(error)
        epoch += 1
        print(f"epoch {epoch}: validation {error:.4f}, lr {optimizer.param_groups[0]['lr']:.5f}")
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(content, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)


if __name__ == "__main__":
    fit()
