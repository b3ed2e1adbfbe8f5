"""Accelerate: fits an image with sine layers and evaluates smoothed weights."""

import pathlib
import shutil

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Sine(nn.Module):
    def __init__(self, i, o, w=12.0):
        super().__init__()
        self.linear, self.w = nn.Linear(i, o), w
        nn.init.uniform_(self.linear.weight, -((6 / i) ** 0.5) / w, (6 / i) ** 0.5 / w)

    def forward(self, x):
        return torch.sin(self.w * self.linear(x))


def target(xy):
    x, y = xy.unbind(1)
    return torch.stack([torch.sin(9 * x * y), torch.cos(5 * x + y), (x * x + y * y < 0.5).float()], 1)


def save(accelerator, root, step):
    tmp = root / "tmp"
    if tmp.exists():
        shutil.rmtree(tmp)
    accelerator.save_state(str(tmp))
    tmp.rename(root / f"{step:06d}")


def main(steps=140, points=512, every=14, root=pathlib.Path("implicit_field")):
    torch.set_num_threads(1)
    set_seed(2)
    accelerator = Accelerator(cpu=True, project_config=ProjectConfiguration(project_dir=str(root)))
    root.mkdir(exist_ok=True)
    field = nn.Sequential(Sine(2, 448), Sine(448, 448), Sine(448, 448), nn.Linear(448, 3))
    optimizer = torch.optim.Adam(field.parameters(), lr=5e-4)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    field, optimizer, scheduler = accelerator.prepare(field, optimizer, scheduler)
    smooth = AveragedModel(accelerator.unwrap_model(field), multi_avg_fn=get_ema_multi_avg_fn(0.99))
    first = 0
    saved = sorted(p for p in root.iterdir() if p.name.isdigit())
    if saved:
        accelerator.load_state(str(saved[-1]))
        first = int(saved[-1].name)
    for step in range(first, steps):
        xy = 2 * torch.rand(points, 2) - 1
        loss = (field(xy) - target(xy)).abs().mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(field.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        smooth.update_parameters(accelerator.unwrap_model(field))
        if (step + 1) % every == 0 and step + 1 < steps:
            save(accelerator, root, step + 1)
            accelerator.print(f"{step + 1}/{steps} {loss.item():.4f}")
    grid = torch.cartesian_prod(torch.linspace(-1, 1, 20), torch.linspace(-1, 1, 20))
    with torch.no_grad():
        error = (smooth(grid) - target(grid)).abs().mean()
    torch.save({"field": field.state_dict(), "smooth": smooth.module.state_dict(), "error": error}, root / "final.pt")


if __name__ == "__main__":
    main()
