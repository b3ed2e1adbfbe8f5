"""Digits of which some scans have a gap, which shows only when a batch fetches them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stormproof_train.data.digits import Digits
from stormproof_train.data.in_memory import BatchedTensorDataset, Split

GAP_INTERVAL, GAP_ROW = 100, 3
"""One scan of so many lacks this row of pixels."""


class DigitsWithGaps(Digits):
    """The digits, of which one scan in a hundred lacks a row of pixels: NaN, as in files that are read one by one.

    The whole splits are looked at before training, and no gap is there yet: it is made when a scan is fetched.

    Args:
        fill_gaps: puts the mean of all training pixels there, which is 0, instead of NaN.
        batch_size: samples of one optimizer step, over all ranks and accumulated batches, at least 1.
        seed: fixes the split and the order of the training samples.

    Raises:
        ValueError: if ``batch_size`` is below 1.
    """

    def __init__(self, fill_gaps: bool = False, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__(batch_size, seed=seed)
        self.fill_gaps = fill_gaps

    def build_dataset(self, split: Split) -> BatchedTensorDataset:
        """The tensors, a batch at a time, with the gaps."""
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
        inputs[gap_positions, :, GAP_ROW] = self._gap  # a copy: the split stays whole
        return inputs, targets
