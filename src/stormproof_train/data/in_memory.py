"""Base class of data modules whose splits fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from stormproof_train.data.first_batches import check_samples
from stormproof_train.data.spec import add_target_statistics
from stormproof_train.data.split_data import SplitDataModule

Split = tuple[torch.Tensor, torch.Tensor]
"""(inputs ``(samples, …)``, class indices ``(samples,)`` or numbers ``(samples, outputs)``)."""


class BatchedTensorDataset(Dataset):
    """Pairs of inputs and targets that are fetched as batches.

    torch's DataLoader passes all indices of a batch to ``__getitems__`` if it exists. A batch then needs one indexing
    operation instead of one per sample, and no collation.
    """

    draws_random_numbers = False

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Split:
        """Returns one sample (input, target)."""
        return self.inputs[index], self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> Split:
        """Returns a batch (inputs, targets)."""
        index = torch.as_tensor(indices)
        return self.inputs[index], self.targets[index]


def _identity_collate(batch: Any) -> Any:
    return batch


class InMemoryDataModule(SplitDataModule):
    """Data module whose splits are tensors. It is fastest without loader processes.

    The arguments are those of :class:`SplitDataModule`.
    """

    collate = staticmethod(_identity_collate)

    def setup(self, stage: str) -> None:
        """Reads the splits of the stage once and adds statistics of the training targets to the spec.

        Raises:
            UserError: If the training or validation split does not match the spec, or is not finite.
        """
        is_unread = self._train is None
        super().setup(stage)
        if is_unread and self._train is not None:
            for split, (inputs, targets) in {"training": self._train, "validation": self._validation}.items():
                check_samples(f"data: in the {split} split of {type(self).__name__}", inputs, targets, self.spec)
            self.spec = add_target_statistics(self.spec, self._train[1])

    def build_dataset(self, split: Split) -> BatchedTensorDataset:
        """Wraps the tensors in a batched dataset."""
        return BatchedTensorDataset(*split)
