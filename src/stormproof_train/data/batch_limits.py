"""Checks limits in batches against the length of the loaders."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

from stormproof_train.counted import counted
from stormproof_train.data.split_data import SplitData
from stormproof_train.errors import UserError


def check_batch_limits(trainer: pl.Trainer, data: pl.LightningDataModule, tests: bool) -> None:
    """Refuses what Lightning refuses in ``setup_data``, after the run folder and the logger were created.

    Checks user-defined data modules only on one rank, because Lightning divides their batches among the ranks.

    Args:
        trainer: Trainer with the limits of the run.
        data: Data module, set up for training.
        tests: Whether the run reads the test split.

    Raises:
        UserError: If a fraction of the batches is less than one batch, if ``val_check_interval`` exceeds the training
            batches of an epoch, or if the ranks cannot share a batch or a split.
    """
    interval: Any = getattr(trainer, "val_check_interval", 1.0)  # not set if it is a time
    if interval == 0:
        raise UserError(
            "trainer.val_check_interval=0 is no interval: set a number of batches, or a fraction of an epoch"
        )
    fractions = [part for part in ("train", "val", "test") if _is_fraction(getattr(trainer, f"limit_{part}_batches"))]
    if not isinstance(data, SplitData) and (trainer.world_size > 1 or not (fractions or interval != 1.0)):
        return
    with _attached(data, trainer):
        (training,) = _counted(trainer, data, "train", data.train_dataloader())
        _counted(trainer, data, "val", data.val_dataloader())
        if tests and "test" in fractions and isinstance(data, SplitData):
            data.setup("test")
            _counted(trainer, data, "test", data.test_dataloader())
    if not isinstance(interval, int):
        if _is_fraction(interval) and training == math.inf:
            raise UserError(_of_unknown_length("trainer.val_check_interval", interval, "training"))
    elif interval > training and trainer.check_val_every_n_epoch is not None:
        raise UserError(
            f"trainer.val_check_interval={interval} is more than the {counted(int(training), 'training batch')} of an "
            f"epoch: set trainer.val_check_interval={training} or less, or trainer.check_val_every_n_epoch=null to "
            "count the batches of all epochs"
        )


def _counted(trainer: pl.Trainer, data: pl.LightningDataModule, part: str, loaders: Any) -> list[float]:
    """Returns the batches of an epoch on a rank, for each loader. Infinite if a loader has no length."""
    overfits = part != "test" and getattr(trainer, "overfit_batches", 0)
    name = "trainer.overfit_batches" if overfits else f"trainer.limit_{part}_batches"
    split = {"train": "training", "val": "validation", "test": "test"}[part]
    drops_last = part == "train" and getattr(data, "drop_last", False)
    several = isinstance(loaders, list | tuple) and part != "train"
    lengths = [_length(each, trainer.world_size, drops_last) for each in (loaders if several else [loaders])]
    return [limited(length, getattr(trainer, f"limit_{part}_batches"), name, split) for length in lengths]


def limited(length: float, limit: float, name: str, split: str) -> float:
    """Returns how many of ``length`` batches a limit leaves.

    Args:
        length: Number of batches. Infinite if the loader has no length.
        limit: Number of batches if int, fraction of them if float.
        name: Name of the limit, for messages.
        split: Name of the split, for messages.

    Raises:
        UserError: If less than one batch is left, or if the number of batches is unknown.

    Example:
        >>> limited(20, 0.5, "trainer.limit_train_batches", "training")
        10
    """
    if isinstance(limit, int):
        return min(length, limit)
    if not _is_fraction(limit) or length == 0:
        return length
    if length == math.inf:
        raise UserError(_of_unknown_length(name, limit, split))
    if length * limit < 1:
        raise UserError(
            f"{name}={limit} of {counted(int(length), f'{split} batch')} is less than one batch: increase the "
            "fraction, or set a number of batches (int)"
        )
    return int(length * limit)


def _is_fraction(limit: Any) -> bool:
    return isinstance(limit, float) and limit != 1.0


def _of_unknown_length(name: str, limit: float, split: str) -> str:
    return f"{name}={limit} is a fraction, but the {split} loader has no length: set a number of batches (int)"


def _length(loader: Any, ranks: int, drops_last: bool) -> float:
    """Returns the number of batches on one rank. Without a process group, a loader counts those of all ranks."""
    try:
        length = len(loader)
    except (TypeError, NotImplementedError):
        return math.inf
    if ranks == 1:
        return length
    # without a sample for each rank in the last step, `resumable` gives batches of one a second sample
    return length // ranks if drops_last or loader.batch_size == 1 else math.ceil(length / ranks)


@contextmanager
def _attached(data: pl.LightningDataModule, trainer: pl.Trainer) -> Iterator[None]:
    """Attaches the trainer, so that the data module computes the batch size of a rank."""
    data.trainer = trainer
    try:
        yield
    finally:
        data.trainer = None
