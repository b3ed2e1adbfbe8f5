"""Loads the samples on which artifacts are calibrated and compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from stormproof_train.data.split_data import SplitDataModule
from stormproof_train.errors import UserError
from stormproof_train.evaluation.prediction_store import count_samples, hash_samples


@dataclass(frozen=True)
class Samples:
    """Samples of a split.

    Attributes:
        inputs: Inputs of the network, float32 (samples, ...).
        target: Classes (samples,), or values (samples, outputs) in their own unit.
        checksums: CRC-32 of each sample (samples,).
        available: Number of samples of the split. None if unknown.
    """

    inputs: NDArray[Any]
    target: NDArray[Any]
    checksums: NDArray[Any]
    available: int | None

    def __len__(self) -> int:
        return len(self.inputs)


def load_samples(
    data: pl.LightningDataModule, split: Literal["train", "validation", "test"], num_outputs: int, max_samples: int
) -> Samples:
    """Loads at most ``max_samples`` samples of a split, evenly spaced.

    Args:
        data: Data module. The training samples of a :class:`SplitDataModule` are loaded in order and without
            augmentation, samples of another data module in the order of its loader.
        split: Name of the split.
        num_outputs: Number of outputs for regression. 0 for classification.
        max_samples: Maximum number of samples.

    Raises:
        UserError: If the split is empty.
    """
    data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    loader = _build_loader(data, split, max_samples)
    available = count_samples(loader)
    inputs, target = _collect_samples(loader, max_samples, None if split == "train" else available)
    if not len(inputs):
        raise UserError(f"data: the {split} loader of {type(data).__name__} has no batches")
    if num_outputs:
        target = target.reshape(-1, num_outputs).float()
    elif target.is_floating_point():
        target = target.argmax(dim=1)  # probabilities of the classes
    checksums = hash_samples(inputs)
    return Samples(
        (inputs.float() if inputs.is_floating_point() else inputs).numpy(), target.numpy(), checksums, available
    )


def _build_loader(data: pl.LightningDataModule, split: str, max_samples: int) -> Iterable[Any]:
    if split == "test":
        return data.test_dataloader()
    if split == "validation":
        return data.val_dataloader()
    if isinstance(data, SplitDataModule):
        return data.evenly_spaced_loader(max_samples, max_batches=max_samples)
    return data.train_dataloader()


def _collect_samples(loader: Iterable[Any], max_samples: int, length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Collects evenly spaced samples (classes may be sorted), or the first ones if the length is unknown."""
    picked_indices = (
        torch.linspace(0, length - 1, max_samples).long() if length is not None and length > max_samples else None
    )
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    num_read = num_collected = 0
    with torch.random.fork_rng(devices=[]):
        for batch in loader:
            inputs, target = (tensor.detach().cpu() for tensor in batch)
            if picked_indices is not None:
                batch_indices = (
                    picked_indices[(picked_indices >= num_read) & (picked_indices < num_read + len(inputs))] - num_read
                )
                num_read += len(inputs)
                inputs, target = inputs[batch_indices], target[batch_indices]
            parts.append((inputs, target))
            num_collected += len(inputs)
            if num_collected >= max_samples:
                break
    if not parts:
        return torch.empty(0), torch.empty(0)
    inputs, target = (torch.cat(tensors)[:max_samples] for tensors in zip(*parts, strict=True))
    return inputs, target
