"""Trains two tasks jointly and learns the weight of each loss (Kendall et al., 2018)."""

import dataclasses
import pathlib

import torch
from torch import nn


@dataclasses.dataclass
class Options:
    steps: int = 120
    batch: int = 64
    lr: float = 2e-3
    folder: pathlib.Path = pathlib.Path("multitask")


class SharedTrunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(40, 256), nn.GELU(), nn.Linear(256, 128), nn.GELU())
        self.regression = nn.Linear(128, 1)
        self.classification = nn.Linear(128, 5)

    def forward(self, x):
        h = self.trunk(x)
        return self.regression(h)[:, 0], self.classification(h)


class UncertaintyLoss(nn.Module):
    def __init__(self, tasks):
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(tasks))

    def forward(self, losses):
        return (torch.exp(-self.log_variance) * losses + self.log_variance).sum()


def tasks(step, n):
    g = torch.Generator().manual_seed(step)
    mixing = torch.randn(40, 6, generator=torch.Generator().manual_seed(12345))
    x = torch.randn(n, 40, generator=g)
    z = x @ mixing
    return x, 5 * z[:, 0].sin() + torch.randn(n, generator=g), z[:, 1:].argmax(1)


def main(options):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.folder.mkdir(exist_ok=True)
    model, weighting = SharedTrunk(), UncertaintyLoss(2)
    optimizer = torch.optim.Adam(
        [{"params": model.parameters()}, {"params": weighting.parameters(), "lr": 0.02}], lr=options.lr
    )
    checkpoint = options.folder / "checkpoint.pt"
    step = 0
    if checkpoint.exists():
        values = torch.load(checkpoint)
        model.load_state_dict(values["model"])
        optimizer.load_state_dict(values["optimizer"])
        step = values["step"]
    while step < options.steps:
        x, y_regression, y_class = tasks(step, options.batch)
        prediction, logits = model(x)
        losses = torch.stack(
            [nn.functional.mse_loss(prediction, y_regression), nn.functional.cross_entropy(logits, y_class)]
        )
        loss = weighting(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 9 == 0 or step == options.steps:
            values = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(values, options.folder / "writing")
            (options.folder / "writing").replace(checkpoint)
            print(step, [round(v, 4) for v in losses.tolist()], weighting.log_variance.tolist())


if __name__ == "__main__":
    main(Options())
