"""Data that fits in memory: whole tensors, batches cut from them without a Python loop over samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from stormproof_train.data.first_batches import check_samples
from stormproof_train.data.spec import add_target_statistics
from stormproof_train.data.split_data import SplitDataModule

Split = tuple[torch.Tensor, torch.Tensor]
"""(inputs (N, …), targets (N,) class indices or (N, outputs))."""


class BatchedTensorDataset(Dataset):
    """Pairs of inputs and targets, fetched a batch at a time.

    torch's loader hands all indices of a batch to ``__getitems__`` where there is one; with one indexing operation
    for the batch instead of one a sample, and nothing left to collate.
    """

    draws_random_numbers = False

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Split:
        """One sample: (input, target)."""
        return self.inputs[index], self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> Split:
        """A whole batch: (inputs, targets)."""
        index = torch.as_tensor(indices)
        return self.inputs[index], self.targets[index]


def _identity_collate(batch: Any) -> Any:
    return batch


class InMemoryDataModule(SplitDataModule):
    """A data module whose splits are whole tensors; no loader process is as fast as none.

    The arguments are those of :class:`SplitDataModule`.
    """

    collate = staticmethod(_identity_collate)

    def load(self) -> tuple[Split, Split]:
        """The training and the validation split, scaled by statistics of the training split alone."""
        raise NotImplementedError

    def load_test(self) -> Split:
        """The test split, scaled in the same way; read once, when testing begins."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Reads what the stage needs, once; the spec then tells of the training targets too.

        Raises:
            UserError: if what is trained and validated on is not as the spec says, or not finite.
        """
        is_unread = self._train is None
        super().setup(stage)
        if is_unread and self._train is not None:
            for split, (inputs, targets) in {"training": self._train, "validation": self._validation}.items():
                check_samples(f"data: in the {split} split of {type(self).__name__}", inputs, targets, self.spec)
            self.spec = add_target_statistics(self.spec, self._train[1])

    def build_dataset(self, split: Split) -> BatchedTensorDataset:
        """The tensors, a batch at a time."""
        return BatchedTensorDataset(*split)
