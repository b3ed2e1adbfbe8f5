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
from stormproof_train.evaluation.collected import told_apart


@dataclass(frozen=True)
class Samples:
    """Samples of a split.

    Attributes:
        inputs: as a network gets them, float32, (N, …).
        target: the classes (N,), or the values (N, outputs) in their own unit.
        told_apart: a number by which each sample is known, (N,).
    """

    inputs: NDArray[Any]
    target: NDArray[Any]
    told_apart: NDArray[Any]

    def __len__(self) -> int:
        return len(self.inputs)


def samples_of(
    data: pl.LightningDataModule, split: Literal["train", "validation", "test"], num_outputs: int, most: int
) -> Samples:
    """The first samples of a split; of training evenly picked ones, without augmentation.

    Args:
        data: the data module.
        split: which.
        num_outputs: of a regression; 0 for classes.
        most: how many at most.

    Raises:
        UserError: if there is none.
    """
    data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    inputs, target = _gathered(_loader(data, split, most), most)
    if not len(inputs):
        raise UserError(f"data: the {split} loader of {type(data).__name__} has no batch")
    if num_outputs:
        target = target.reshape(-1, num_outputs).float()
    elif target.is_floating_point():
        target = target.argmax(dim=1)  # probabilities of the classes
    return Samples(inputs.float().numpy(), target.numpy(), told_apart(inputs))


def _loader(data: pl.LightningDataModule, split: str, most: int) -> Iterable[Any]:
    if split == "test":
        return data.test_dataloader()
    if split == "validation":
        return data.val_dataloader()
    if isinstance(data, SplitData):
        return data.evenly_picked(most, batches=most)
    return data.train_dataloader()


def _gathered(loader: Iterable[Any], most: int) -> tuple[torch.Tensor, torch.Tensor]:
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    count = 0
    with torch.random.fork_rng(devices=[]):
        for inputs, target in loader:
            parts.append((inputs.detach().cpu(), target.detach().cpu()))
            count += len(inputs)
            if count >= most:
                break
    if not parts:
        return torch.empty(0), torch.empty(0)
    inputs, target = (torch.cat(each)[:most] for each in zip(*parts, strict=True))
    return inputs, target
