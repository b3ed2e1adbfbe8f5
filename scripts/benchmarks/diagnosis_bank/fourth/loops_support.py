"""Data, networks and checks of the programs with unusual training loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from diagnosis_bank.program import Outcome
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Check = Callable[[Outcome], bool]


def make_generator(seed: int) -> torch.Generator:
    """Returns a generator for the data of a program."""
    return torch.Generator().manual_seed(1000 + seed)


def make_loader(size: int, *columns: torch.Tensor, shuffle: bool = True) -> DataLoader[Any]:
    """Returns a loader of tuples of the columns. The last, smaller batch is dropped if the rows are shuffled."""
    return DataLoader(TensorDataset(*columns), batch_size=size, shuffle=shuffle, drop_last=shuffle)


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns all pictures of digits, (1797, 1, 8, 8) from zero to one, and their labels."""
    bunch: Any = load_digits()
    return torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(bunch.target)


def mixed_digits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the digits in an order that depends on the seed."""
    images, labels = digits()
    order = torch.randperm(len(labels), generator=make_generator(seed))
    return images[order], labels[order]


def digit_loaders(seed: int, size: int, train: int = 1500) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Returns loaders of training and held-out digits."""
    images, labels = mixed_digits(seed)
    held_out = make_loader(256, images[train:], labels[train:], shuffle=False)
    return make_loader(size, images[:train], labels[:train]), held_out


def augment(images: torch.Tensor, noise: float = 0.1) -> torch.Tensor:
    """Shifts half of the pictures by one pixel, changes its contrast and adds noise."""
    stay = torch.rand(len(images), 1, 1, 1) < 0.5
    moved = torch.where(stay, images, images.roll(int(torch.randint(2, ())) * 2 - 1, 3))
    contrast = 0.7 + 0.6 * torch.rand(len(images), 1, 1, 1)
    return moved * contrast + noise * torch.randn_like(images)


def mlp(*sizes: int, between: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Returns linear layers of these sizes with an activation between them."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        layers += [between()] * bool(index) + [nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)


def step_output(
    return_dict: bool, loss: torch.Tensor, preds: torch.Tensor | None = None, target: torch.Tensor | None = None
) -> Any:
    """Returns what ``training_step`` returns: the loss, or a dictionary with predictions and targets if they exist."""
    if not return_dict:
        return loss
    return {"loss": loss} if preds is None else {"loss": loss, "preds": preds.detach(), "target": target}


def all_of(*checks: Check) -> Check:
    """Returns a check that all checks pass."""
    return lambda outcome: all(check(outcome) for check in checks)


def ran_to_end(outcome: Outcome) -> bool:
    """Returns True if training finished and all losses are finite."""
    return outcome.error is None and len(outcome.losses) > 0 and all(math.isfinite(loss) for loss in outcome.losses)


def became_non_finite(outcome: Outcome) -> bool:
    """Returns True if a loss is NaN or infinite."""
    return not all(math.isfinite(loss) for loss in outcome.losses)


def ends_above(value: float, last: int = 20) -> Check:
    """Returns a check that the mean of the last losses is not below ``value``."""
    return lambda outcome: not outcome.mean_loss(last) < value


def ends_below(value: float, last: int = 20) -> Check:
    """Returns a check that training finished with a mean of the last losses below ``value``."""
    return lambda outcome: ran_to_end(outcome) and outcome.mean_loss(last) < value


def unchanged(prefix: str) -> Check:
    """Returns a check that all parameters whose name begins with ``prefix`` kept their values."""

    def check(outcome: Outcome) -> bool:
        chosen = [name for name, _ in outcome.after.named_parameters() if name.startswith(prefix)]
        after = outcome.after.state_dict()
        return bool(chosen) and all(torch.allclose(outcome.before[name], after[name], atol=1e-7) for name in chosen)

    return check


def changed(prefix: str) -> Check:
    """Returns a check that a parameter whose name begins with ``prefix`` changed."""
    return lambda outcome: not unchanged(prefix)(outcome)


def accuracy(outcome: Outcome) -> float:
    """Returns the accuracy on held-out data, or on the training data without a validation loader."""
    loader: Any = outcome.fit.validation if outcome.fit.validation is not None else outcome.fit.train
    outcome.after.eval()
    hits: list[torch.Tensor] = []
    with torch.no_grad():
        for inputs, labels, *_ in loader:
            hits.append(outcome.after(inputs).argmax(1) == labels)
    return float(torch.cat(hits).float().mean())


def accuracy_above(value: float) -> Check:
    """Returns a check that training finished with an accuracy above ``value``."""
    return lambda outcome: ran_to_end(outcome) and accuracy(outcome) > value


def accuracy_below(value: float) -> Check:
    """Returns a check that the accuracy is below ``value``."""
    return lambda outcome: accuracy(outcome) < value


def neighbour_accuracy(embed: Callable[[torch.Tensor], torch.Tensor], seed: int = 0) -> float:
    """Returns the share of digits whose nearest neighbor among other digits has their label, by cosine similarity."""
    images, labels = mixed_digits(seed)
    with torch.no_grad():
        codes = nn.functional.normalize(embed(images), dim=1)
    nearest = (codes[1200:] @ codes[:1200].T).argmax(1)
    return float((labels[:1200][nearest] == labels[1200:]).float().mean())
