"""Describes the data set for networks, losses and metrics."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from stormproof_train.errors import UserError


@dataclass(frozen=True)
class DataSpec:
    """Shapes and task of a data set.

    Attributes:
        input_shape: Shape of one sample.
        num_classes: Number of classes. None for regression.
        num_outputs: Number of network outputs per sample.
        target_mean: Mean of the training targets of a regression. The task trains on (target - mean) / std.
        target_std: Standard deviation of the training targets of a regression. Must be above 0.
        class_counts: Number of training samples per class. None if unknown.
        target_min: Minimum of the training targets of a regression. None if unknown.
    """

    input_shape: tuple[int, ...]
    num_classes: int | None
    num_outputs: int
    target_mean: float = 0.0
    target_std: float = 1.0
    class_counts: tuple[int, ...] | None = None
    target_min: float | None = None

    @property
    def task(self) -> Literal["classification", "regression"]:
        """Task of the data: classification if there are classes, else regression."""
        return "classification" if self.num_classes else "regression"


def add_target_statistics(spec: DataSpec, targets: torch.Tensor) -> DataSpec:
    """Returns the spec with statistics of the training targets.

    The statistics are the number of samples per class for classification, and mean, standard deviation and minimum for
    regression.

    Args:
        spec: Spec of the data set.
        targets: Targets of the training split, class indices ``(samples,)`` or numbers ``(samples, outputs)``. The spec
            is unchanged for class probabilities ``(samples, classes)``.

    Example:
        >>> add_target_statistics(DataSpec((2,), num_classes=3, num_outputs=3), torch.tensor([2, 0, 2])).class_counts
        (1, 0, 2)
    """
    if spec.num_classes and targets.is_floating_point():
        return spec
    if spec.num_classes:
        counts = torch.bincount(targets, minlength=spec.num_classes)
        return dataclasses.replace(spec, class_counts=tuple(counts.tolist()))
    mean, std, smallest = float(targets.mean()), float(targets.std()), float(targets.min())
    return dataclasses.replace(spec, target_mean=mean, target_std=std, target_min=smallest)


def infer_spec(data: pl.LightningDataModule) -> DataSpec:
    """Returns the ``spec`` of the data module, or infers it from the first training batch.

    A user-defined data module must yield (input, target) pairs. Integer targets are class indices. The number of
    classes is read from the attribute ``num_classes`` of the module, or ``classes`` of its data set. The number of
    training samples per class, which some losses need, is read from the attribute ``class_counts`` if it exists. Other
    targets are class probabilities if the number of classes is known, else regression targets.

    Raises:
        UserError: If a loader is missing, the batch is not a pair, the number of classes is unknown, or the length of
            ``class_counts`` is not the number of classes.
    """
    name = type(data).__name__
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if getattr(type(data), loader, None) in {None, getattr(pl.LightningDataModule, loader)}:
            raise UserError(f"data: {name} has no {loader}. A run trains, validates and tests.")
    spec = getattr(data, "spec", None)
    if isinstance(spec, DataSpec):
        return spec
    inputs, target = fetch_first_batch(data)
    input_shape = tuple(inputs.shape[1:])
    classes = getattr(getattr(data.train_dataloader(), "dataset", None), "classes", None)
    num_classes = getattr(data, "num_classes", None) or (len(classes) if classes is not None else None)
    if not num_classes and target.is_floating_point():
        return DataSpec(input_shape, None, math.prod(target.shape[1:]))
    if not num_classes:
        raise UserError(
            f"data: {name} yields class labels, but the number of classes is unknown. Add an attribute num_classes."
        )
    counts = getattr(data, "class_counts", None)
    if counts is not None and len(counts) != num_classes:
        raise UserError(
            f"data: {name}.class_counts must have one count per class, got {len(counts)} for {num_classes} classes"
        )
    class_counts = None if counts is None else tuple(int(count) for count in counts)
    return DataSpec(input_shape, int(num_classes), int(num_classes), class_counts=class_counts)


def fetch_first_batch(data: pl.LightningDataModule) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first training batch (input, target) without a Trainer. torch's random generator keeps its state.

    Raises:
        UserError: If there is no batch, or it is not a pair of tensors.
    """
    data.prepare_data()
    data.setup("fit")
    return fetch_batch(data, data.train_dataloader(), "training")


def fetch_batch(data: pl.LightningDataModule, loader: Any, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first batch (input, target) of a loader. torch's random generator keeps its state.

    Raises:
        UserError: If there is no batch, or it is not a pair of tensors.
    """
    name = type(data).__name__
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(loader), None)
    if batch is None:
        raise UserError(
            f"data: the {split} loader of {name} has no batches. The data set is empty, or drop_last drops everything."
        )
    if not (isinstance(batch, list | tuple) and len(batch) == 2 and all(torch.is_tensor(part) for part in batch)):
        raise UserError(f"data: {name} must yield pairs of tensors (input, target), got {type(batch).__name__}")
    return batch[0], batch[1]


def get_fingerprint(data: pl.LightningDataModule) -> str | None:
    """Returns the attribute ``fingerprint`` of a data module if it is a string, else None.

    Example:
        >>> print(get_fingerprint(pl.LightningDataModule()))
        None
    """
    fingerprint = getattr(data, "fingerprint", None)
    return fingerprint if isinstance(fingerprint, str) else None
