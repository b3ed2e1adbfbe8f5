"""Data, a module and checks for programs about tables, series, graphs and probabilistic models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from diagnosis_bank.program import Outcome
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

Check = Callable[[Outcome], bool]


class Steps(pl.LightningModule):
    """A LightningModule whose steps share ``compute``, which returns the loss, predictions and target of a batch.

    Args:
        return_dict: If True, the training step returns predictions and target with the loss.
        rate: Learning rate of Adam.
    """

    def __init__(self, return_dict: bool, rate: float = 1e-3) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.rate = rate

    def compute(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the loss, the predictions and the target of a batch."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, preds, target = self.compute(batch)
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.compute(batch)[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def mlp(*sizes: int, between: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Returns linear layers of these sizes with activations between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), between()]
    return nn.Sequential(*layers[:-1])


def source_of(seed: int) -> torch.Generator:
    """Returns a generator that depends only on ``seed``."""
    return torch.Generator().manual_seed(1000 + seed)


def scores(inputs: Tensor, source: torch.Generator, outputs: int = 1) -> Tensor:
    """Returns standardized outputs that depend smoothly on the rows."""
    columns = inputs.shape[1]
    first = torch.randn(columns, outputs, generator=source) / math.sqrt(columns)
    second = torch.randn(columns, outputs, generator=source) / math.sqrt(columns)
    values = 2 * inputs @ first + torch.sin(2 * inputs @ second)
    return (values - values.mean(0)) / values.std(0)


def table(seed: int, rows: int, columns: int, outputs: int = 1, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    """Returns standard normal rows and standardized outputs with noise."""
    source = source_of(seed)
    inputs = torch.randn(rows, columns, generator=source)
    return inputs, scores(inputs, source, outputs) + noise * torch.randn(rows, outputs, generator=source)


def loader(size: int, *tensors: Tensor, shuffle: bool = True) -> DataLoader[Any]:
    """Returns a loader of tensors."""
    return DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=shuffle)


def batched_loader(size: int, *tensors: Tensor) -> DataLoader[Any]:
    """Returns a shuffling loader that reads each batch at once, which is fast for large batches."""
    dataset = TensorDataset(*tensors)
    return DataLoader(dataset, batch_size=None, sampler=BatchSampler(RandomSampler(dataset), size, drop_last=False))


def loaders(held_out: int, size: int, *tensors: Tensor) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Returns loaders for training, and for validation with the last ``held_out`` rows."""
    train = loader(size, *(tensor[:-held_out] for tensor in tensors))
    return train, loader(max(size, 64), *(tensor[-held_out:] for tensor in tensors), shuffle=False)


def series(seed: int, rows: int, length: int, noise: float = 0.1) -> Tensor:
    """Returns noisy seasonal series (rows, length) of about unit size."""
    source = source_of(seed)
    time = torch.arange(length).view(1, length)
    phase = 2 * math.pi * torch.rand(rows, 1, generator=source)
    speed = 0.4 + 0.5 * torch.rand(rows, 1, generator=source)
    slope = 0.03 * torch.randn(rows, 1, generator=source)
    waves = torch.sin(speed * time + phase) + slope * time
    return waves + noise * torch.randn(rows, length, generator=source)


def evaluate(outcome: Outcome) -> tuple[float, Tensor, Tensor]:
    """Returns the mean loss, the predictions and the targets on the validation data, or else the training data."""
    module: Any = outcome.after
    module.eval()
    losses, preds, targets = [], [], []
    for batch in outcome.fit.validation or outcome.fit.train:
        loss, pred, target = module.compute(batch)
        losses.append(float(loss.detach()))
        preds.append(pred.detach())
        targets.append(target.detach())
    return math.fsum(losses) / len(losses), torch.cat(preds), torch.cat(targets)


def ran(outcome: Outcome) -> bool:
    """Returns True if training finished with finite losses."""
    return outcome.error is None and len(outcome.losses) > 0 and all(math.isfinite(loss) for loss in outcome.losses)


def explained(outcome: Outcome) -> float:
    """Returns the explained variance of the predictions, NaN for weights that are not finite."""
    _, preds, target = evaluate(outcome)
    preds, target = preds.reshape(target.shape).double(), target.double()
    return 1 - float((preds - target).square().mean() / (target - target.mean(0)).square().mean())


def explains(share: float) -> Check:
    """Returns a check that the run finished and the explained variance reaches this share."""
    return lambda outcome: ran(outcome) and explained(outcome) >= share


def explains_less_than(share: float) -> Check:
    """Returns a check that the explained variance is below this share."""
    return lambda outcome: not explained(outcome) >= share


def accuracy(outcome: Outcome) -> float:
    """Returns the accuracy of scores for classes, or of one score per label with a limit of 0."""
    _, preds, target = evaluate(outcome)
    found = (preds > 0) == (target > 0.5) if preds.shape == target.shape else preds.argmax(1) == target
    return float(found.double().mean())


def is_accurate(share: float) -> Check:
    """Returns a check that the run finished and the accuracy reaches this share."""
    return lambda outcome: ran(outcome) and accuracy(outcome) >= share


def is_non_finite(outcome: Outcome) -> bool:
    """Returns True if a loss or a weight became NaN or infinite."""
    weights = outcome.after.state_dict().values()
    return not all(math.isfinite(loss) for loss in outcome.losses) or not all(
        bool(weight.isfinite().all()) for weight in weights
    )


def is_unchanged(outcome: Outcome, name: str) -> bool:
    """Returns True if the weight is unchanged after training."""
    return ran(outcome) and torch.equal(outcome.before[name], outcome.after.state_dict()[name])
