"""Checks limits in batches against the length of the loaders."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

from stormproof_train.data.split_data import SplitDataModule
from stormproof_train.errors import UserError
from stormproof_train.pluralize import pluralize


def check_batch_limits(trainer: pl.Trainer, data: pl.LightningDataModule, runs_test: bool) -> None:
    """Rejects limits that Lightning would reject in ``setup_data``, after the run folder and the logger were created.

    Checks user-defined data modules only on one rank, because Lightning divides their batches among the ranks.

    Args:
        trainer: Trainer with the limits of the run.
        data: Data module, set up for training.
        runs_test: True if the run reads the test split.

    Raises:
        UserError: If a fraction of the batches is less than one batch, ``val_check_interval`` exceeds the batches of an
            epoch, or the ranks cannot share a batch or a split.
    """
    interval: Any = getattr(trainer, "val_check_interval", 1.0)  # not set if it is a time
    if interval == 0:
        raise UserError("trainer.val_check_interval must not be 0. Set a number of batches, or a fraction of an epoch.")
    fractions = [
        stage for stage in ("train", "val", "test") if _is_fraction(getattr(trainer, f"limit_{stage}_batches"))
    ]
    if not isinstance(data, SplitDataModule) and (trainer.world_size > 1 or not (fractions or interval != 1.0)):
        return
    with _attach_trainer(data, trainer):
        (num_training_batches,) = _batches_per_epoch(trainer, data, "train", data.train_dataloader())
        _batches_per_epoch(trainer, data, "val", data.val_dataloader())
        if runs_test and "test" in fractions and isinstance(data, SplitDataModule):
            data.setup("test")
            _batches_per_epoch(trainer, data, "test", data.test_dataloader())
    if not isinstance(interval, int):
        if _is_fraction(interval) and num_training_batches == math.inf:
            raise UserError(_unknown_length_message("trainer.val_check_interval", interval, "training"))
    elif interval > num_training_batches and trainer.check_val_every_n_epoch is not None:
        raise UserError(
            f"trainer.val_check_interval={interval} exceeds the "
            f"{pluralize(int(num_training_batches), 'training batch')} of an epoch. Set "
            f"trainer.val_check_interval={num_training_batches} or less, or trainer.check_val_every_n_epoch=null to "
            "count batches over all epochs."
        )


def _batches_per_epoch(trainer: pl.Trainer, data: pl.LightningDataModule, stage: str, loaders: Any) -> list[float]:
    """Returns the batches of an epoch on a rank, for each loader. Infinite if a loader has no length."""
    overfit_batches = stage != "test" and getattr(trainer, "overfit_batches", 0)
    name = "trainer.overfit_batches" if overfit_batches else f"trainer.limit_{stage}_batches"
    split = {"train": "training", "val": "validation", "test": "test"}[stage]
    drop_last = stage == "train" and getattr(data, "drop_last", False)
    is_multiple = isinstance(loaders, list | tuple) and stage != "train"
    lengths = [_length(loader, trainer.world_size, drop_last) for loader in (loaders if is_multiple else [loaders])]
    return [apply_limit(length, getattr(trainer, f"limit_{stage}_batches"), name, split) for length in lengths]


def apply_limit(length: float, limit: float, name: str, split: str) -> float:
    """Returns the number of batches of ``length`` that a limit leaves.

    Args:
        length: Number of batches. Infinite if the loader has no length.
        limit: Number of batches if int, fraction of them if float.
        name: Name of the limit, for messages.
        split: Name of the split, for messages.

    Raises:
        UserError: If less than one batch is left, or if the number of batches is unknown.

    Example:
        >>> apply_limit(20, 0.5, "trainer.limit_train_batches", "training")
        10
    """
    if isinstance(limit, int):
        return min(length, limit)
    if not _is_fraction(limit) or length == 0:
        return length
    if length == math.inf:
        raise UserError(_unknown_length_message(name, limit, split))
    if length * limit < 1:
        raise UserError(
            f"{name}={limit} of {pluralize(int(length), f'{split} batch')} is less than one batch. Increase the "
            "fraction, or set a number of batches (int)."
        )
    return int(length * limit)


def _is_fraction(limit: Any) -> bool:
    return isinstance(limit, float) and limit != 1.0


def _unknown_length_message(name: str, limit: float, split: str) -> str:
    return f"{name}={limit} is a fraction, but the {split} loader has no length. Set a number of batches (int)."


def _length(loader: Any, world_size: int, drop_last: bool) -> float:
    """Returns the number of batches on one rank. Without a process group, a loader counts those of all ranks."""
    try:
        length = len(loader)
    except (TypeError, NotImplementedError):
        return math.inf
    if world_size == 1:
        return length
    # if a rank has no sample in the last step, `resumable` repeats one for batches of size 1
    return length // world_size if drop_last or loader.batch_size == 1 else math.ceil(length / world_size)


@contextmanager
def _attach_trainer(data: pl.LightningDataModule, trainer: pl.Trainer) -> Iterator[None]:
    """Attaches the trainer, so that the data module computes the batch size of a rank."""
    data.trainer = trainer
    try:
        yield
    finally:
        data.trainer = None
