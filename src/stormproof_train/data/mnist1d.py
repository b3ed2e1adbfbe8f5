"""MNIST-1D, made by its authors' package."""

from __future__ import annotations

import functools
import random
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from stormproof_train.data.in_memory import InMemoryDataModule, Split
from stormproof_train.data.spec import DataSpec
from stormproof_train.data.splits import hold_out
from stormproof_train.errors import UserError
from stormproof_train.install_command import install_command


class MNIST1D(InMemoryDataModule):
    """5,000 made-up signals of 40 numbers, (1, 40), 10 classes; 1,000 of them the authors' test split; no network.

    Each is a drawn digit in one dimension, padded, shifted, scaled, sheared and noisy. The package ``mnist1d`` (extra
    ``[mnist1d]``) makes all of them within two seconds, the same each time: from the authors' own seed, not this one.
    The numbers are as published, of mean 0 and standard deviation 1 over all 5,000.

    Args:
        batch_size: samples of one optimizer step, over all ranks and accumulated batches, at least 1.
        validation_fraction: share of the 4,000 training samples, in (0, 1).
        num_workers: loader processes of each rank, at least 0.
        drop_last: leaves an epoch's last, smaller training batch out.
        seed: fixes the split and the order of the training samples.

    Attributes:
        fingerprint: the package's version.

    Raises:
        ValueError: if a number is out of its range.
        UserError: if the package is not installed.

    References:
        Greydanus & Kobak, Scaling Down Deep Learning with MNIST-1D, 2024, section 2.
    """

    spec = DataSpec((1, 40), num_classes=10, num_outputs=10)

    def __init__(
        self,
        batch_size: int = 100,
        validation_fraction: float = 0.1,
        num_workers: int = 0,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, drop_last, seed)
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction is {validation_fraction}; it must be between 0 and 1")
        if find_spec("mnist1d") is None:
            raise UserError(
                f"data=mnist1d needs the package mnist1d, which is not installed: {install_command('mnist1d')}"
            )
        self.validation_fraction = validation_fraction
        self.fingerprint = version("mnist1d")  # it makes the data

    def load(self) -> tuple[Split, Split]:
        """The training and the validation split, of the authors' 4,000 training samples."""
        signals, labels = _make_splits()["train"]
        train_indices, validation_indices = hold_out(len(labels), self.validation_fraction, self.seed, labels.numpy())
        return (signals[train_indices], labels[train_indices]), (
            signals[validation_indices],
            labels[validation_indices],
        )

    def load_test(self) -> Split:
        """The authors' test split."""
        return _make_splits()["test"]

    @property
    def preparation(self) -> dict[str, Any]:
        """An input is an array as it is published: there are no files that would become one."""
        return {"kind": "array"}


@functools.cache
def _make_splits() -> dict[str, Split]:
    """Made once a process: a sweep's runs share it."""
    from mnist1d.data import get_dataset_args, make_dataset  # noqa: PLC0415 (it imports matplotlib)

    # it seeds the process' generators, which are not its own
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        arrays = make_dataset(get_dataset_args())
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
    return {"train": _to_tensors(arrays["x"], arrays["y"]), "test": _to_tensors(arrays["x_test"], arrays["y_test"])}


def _to_tensors(signals: np.ndarray, labels: np.ndarray) -> Split:
    return torch.from_numpy(signals).float().unsqueeze(1), torch.from_numpy(labels).long()
