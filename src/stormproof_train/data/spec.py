"""What a network, a loss and the metrics need to know of a data set."""

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
        input_shape: of one sample.
        num_classes: None for regression.
        num_outputs: what a network must give for one sample.
        target_mean: of a regression's training targets; the task trains on (target - mean) / std.
        target_std: likewise, above 0.
        class_counts: training samples of each class; None where nobody has counted.
        target_min: the smallest of a regression's training targets; None where nobody has looked.
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
        """Classification where there are classes, else regression."""
        return "classification" if self.num_classes else "regression"


def add_target_statistics(spec: DataSpec, targets: torch.Tensor) -> DataSpec:
    """The spec with what the training targets tell: samples of each class; or mean, standard deviation and smallest.

    Args:
        spec: of the data set.
        targets: of the training split, (N,) class indices or (N, outputs); (N, classes) probabilities
            tell nothing.

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
    """The data module's own ``spec`` where it has one, else one read off its first training batch.

    A foreign data module must yield (input, target) pairs. Integer targets mean classification; the number of classes
    comes from an attribute ``num_classes`` of the module, or ``classes`` of its data set; the training samples of each,
    which some losses want, from an attribute ``class_counts``, if it has one. Other targets are class probabilities
    where there is such a number, else those of a regression.

    Raises:
        UserError: if a loader is missing, or the batch is no pair, or the number of classes cannot be known, or there
            are not as many counts as classes.
    """
    name = type(data).__name__
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if getattr(type(data), loader, None) in {None, getattr(pl.LightningDataModule, loader)}:
            raise UserError(f"data: {name} has no {loader}; a run trains, validates and tests")
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
        raise UserError(f"data: {name} gives class labels but not how many classes: give it an attribute num_classes")
    counts = getattr(data, "class_counts", None)
    if counts is not None and len(counts) != num_classes:
        raise UserError(f"data: {name}.class_counts has {len(counts)} counts for {num_classes} classes: one for each")
    class_counts = None if counts is None else tuple(int(count) for count in counts)
    return DataSpec(input_shape, int(num_classes), int(num_classes), class_counts=class_counts)


def fetch_first_batch(data: pl.LightningDataModule) -> tuple[torch.Tensor, torch.Tensor]:
    """A training batch, (inputs, target), before there is a Trainer; torch's generator stays as it is.

    Raises:
        UserError: if there is none, or it is no such pair.
    """
    data.prepare_data()
    data.setup("fit")
    return fetch_batch(data, data.train_dataloader(), "training")


def fetch_batch(data: pl.LightningDataModule, loader: Any, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The first batch, (inputs, target), of one of the module's loaders; torch's generator stays as it is.

    Raises:
        UserError: if there is none, or it is no such pair.
    """
    name = type(data).__name__
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(loader), None)
    if batch is None:
        raise UserError(
            f"data: the {split} loader of {name} has no batch: its data set is empty, or drop_last left none"
        )
    if not (isinstance(batch, list | tuple) and len(batch) == 2 and all(torch.is_tensor(part) for part in batch)):
        raise UserError(f"data: {name} must yield pairs of tensors (input, target), and gives {type(batch).__name__}")
    return batch[0], batch[1]


def get_fingerprint(data: pl.LightningDataModule) -> str | None:
    """What the data module says of its files' content by a string ``fingerprint``; None where it says nothing.

    Example:
        >>> get_fingerprint(pl.LightningDataModule()) is None
        True
    """
    fingerprint = getattr(data, "fingerprint", None)
    return fingerprint if isinstance(fingerprint, str) else None
