"""What artifacts are calibrated and compared on, as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from stormproof_train.data.split_data import SplitData
from stormproof_train.errors import UserError
from stormproof_train.evaluation.collected import samples_in, told_apart


@dataclass(frozen=True)
class Samples:
    """Samples of a split.

    Attributes:
        inputs: as a network gets them, float32, (N, …).
        target: the classes (N,), or the values (N, outputs) in their own unit.
        told_apart: a number by which each sample is known, (N,).
        available: how many the split has; None where nobody says.
    """

    inputs: NDArray[Any]
    target: NDArray[Any]
    told_apart: NDArray[Any]
    available: int | None

    def __len__(self) -> int:
        return len(self.inputs)


def samples_of(
    data: pl.LightningDataModule, split: Literal["train", "validation", "test"], num_outputs: int, most: int
) -> Samples:
    """Samples of a split, evenly picked where it has more than are wanted.

    Args:
        data: the data module. Of training one of this application's own gives samples without augmentation, in order;
            of another one it is what its loader gives first.
        split: which.
        num_outputs: of a regression; 0 for classes.
        most: how many at most.

    Raises:
        UserError: if there is none.
    """
    data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    loader = _loader(data, split, most)
    available = samples_in(loader)
    inputs, target = _picked(loader, most, None if split == "train" else available)
    if not len(inputs):
        raise UserError(f"data: the {split} loader of {type(data).__name__} has no batch")
    if num_outputs:
        target = target.reshape(-1, num_outputs).float()
    elif target.is_floating_point():
        target = target.argmax(dim=1)  # probabilities of the classes
    known = told_apart(inputs)
    return Samples((inputs.float() if inputs.is_floating_point() else inputs).numpy(), target.numpy(), known, available)


def _loader(data: pl.LightningDataModule, split: str, most: int) -> Iterable[Any]:
    if split == "test":
        return data.test_dataloader()
    if split == "validation":
        return data.val_dataloader()
    if isinstance(data, SplitData):
        return data.evenly_picked(most, batches=most)
    return data.train_dataloader()


def _picked(loader: Iterable[Any], most: int, length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Evenly picked of so many samples, in which the classes may come one after the other; else the first ones."""
    wanted = torch.linspace(0, length - 1, most).long() if length is not None and length > most else None
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    seen = kept = 0
    with torch.random.fork_rng(devices=[]):
        for batch in loader:
            inputs, target = (part.detach().cpu() for part in batch)
            if wanted is not None:
                here = wanted[(wanted >= seen) & (wanted < seen + len(inputs))] - seen
                seen += len(inputs)
                inputs, target = inputs[here], target[here]
            parts.append((inputs, target))
            kept += len(inputs)
            if kept >= most:
                break
    if not parts:
        return torch.empty(0), torch.empty(0)
    inputs, target = (torch.cat(each)[:most] for each in zip(*parts, strict=True))
    return inputs, target
