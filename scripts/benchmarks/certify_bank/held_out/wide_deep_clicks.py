"""Wide & deep model of clicks: sparse embeddings and a dense tower with an optimizer each."""

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn

FIELDS, BUCKETS = 6, 2000


class Clicks(NamedTuple):
    features: Tensor
    clicked: Tensor


def read_day(day: int, rows: int = 2000) -> Clicks:
    """Generates the log of one day."""
    taste = torch.randn(FIELDS, BUCKETS, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1000 + day)
    features = (BUCKETS * torch.rand(rows, FIELDS, generator=g) ** 3).long()
    score = taste[torch.arange(FIELDS), features].sum(1)
    clicked = (score + torch.randn(rows, generator=g) > 1).float()
    return Clicks(features + BUCKETS * torch.arange(FIELDS), clicked)


class WideDeep(nn.Module):
    def __init__(self, dim: int = 24, hidden: int = 1200):
        super().__init__()
        self.wide = nn.Embedding(FIELDS * BUCKETS, 1, sparse=True)
        self.deep = nn.Embedding(FIELDS * BUCKETS, dim, sparse=True)
        self.tower = nn.Sequential(
            nn.Linear(FIELDS * dim, hidden), nn.ReLU(), nn.LayerNorm(hidden),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        return self.wide(features).sum((1, 2)) + self.tower(self.deep(features).flatten(1)).squeeze(1)


def make_optimizers(model: WideDeep) -> dict[str, torch.optim.Optimizer]:
    return {
        "sparse": torch.optim.SparseAdam([*model.wide.parameters(), *model.deep.parameters()], lr=5e-3),
        "dense": torch.optim.AdamW(model.tower.parameters(), lr=1e-3, weight_decay=0.01),
    }


def write(path: str, model: WideDeep, optimizers: dict[str, torch.optim.Optimizer], day: int) -> None:
    blob = {"weights": model.state_dict(), "day": day}
    blob |= {f"optim_{name}": optimizer.state_dict() for name, optimizer in optimizers.items()}
    torch.save(blob, f"{path}.{os.getpid()}")
    os.replace(f"{path}.{os.getpid()}", path)


def restore(path: str, model: WideDeep, optimizers: dict[str, torch.optim.Optimizer]) -> int:
    if not os.path.exists(path):
        return 0
    blob = torch.load(path)
    model.load_state_dict(blob["weights"])
    optimizers["dense"].load_state_dict(blob["optim_dense"])
    return blob["day"]


def main(days: int = 12, batch: int = 200, path: str = "clicks.pt") -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = WideDeep()
    optimizers = make_optimizers(model)
    for day in range(restore(path, model, optimizers), days):
        log = read_day(day)
        for features, clicked in zip(log.features.split(batch), log.clicked.split(batch), strict=True):
            loss = nn.functional.binary_cross_entropy_with_logits(model(features), clicked)
            model.zero_grad()
            loss.backward()
            for optimizer in optimizers.values():
                optimizer.step()
        print(f"day {day}: {loss.item():.4f}")
        write(path, model, optimizers, day + 1)


if __name__ == "__main__":
    main()
