"""Digits with missing pixels that occur only when a batch is fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stormproof_train.data.digits import Digits
from stormproof_train.data.in_memory import BatchedTensorDataset, Split

GAP_INTERVAL, GAP_ROW = 100, 3
"""One scan of 100 lacks this row of pixels."""


class DigitsWithGaps(Digits):
    """Digits data set in which one of 100 scans lacks a row of pixels (NaN), as with files that are read on demand.

    The splits are valid when they are checked before training, because a gap is created when a scan is fetched.

    Args:
        fill_gaps: If True, fills gaps with 0, the mean of all training pixels, instead of NaN.
        batch_size: Samples per optimizer step, over all ranks and accumulated batches. Must be at least 1.
        seed: Seed of the split and of the order of the training samples.

    Raises:
        ValueError: If ``batch_size`` is below 1.
    """

    def __init__(self, fill_gaps: bool = False, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__(batch_size, seed=seed)
        self.fill_gaps = fill_gaps

    def build_dataset(self, split: Split) -> BatchedTensorDataset:
        """Wraps the tensors in a batched dataset with gaps."""
        return _GappedDataset(split, 0.0 if self.fill_gaps else math.nan)


class _GappedDataset(BatchedTensorDataset):
    def __init__(self, split: Split, gap: float) -> None:
        super().__init__(*split)
        self._gap = gap

    def __getitem__(self, index: int) -> Split:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def __getitems__(self, indices: Sequence[int]) -> Split:
        inputs, targets = super().__getitems__(indices)
        gap_positions = [position for position, index in enumerate(indices) if index % GAP_INTERVAL == GAP_INTERVAL - 1]
        inputs[gap_positions, :, GAP_ROW] = self._gap  # `inputs` is a copy, so the split is unchanged
        return inputs, targets
