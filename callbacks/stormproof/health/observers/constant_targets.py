"""Counts samples with identical targets."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch


class SameTargets:
    """Counts samples until two targets differ.

    Attributes:
        samples: Number of samples with identical targets. None if two targets differ, or if the first dimension of a
            target is not the batch size.
    """

    def __init__(self) -> None:
        self.samples: int | None = 0
        self._first: dict[int, torch.Tensor] = {}

    def add(self, batch: Sequence[torch.Tensor], targets: Collection[int], samples: int) -> None:
        """Adds a batch.

        Args:
            batch: Tensors of the batch.
            targets: Indices of the tensors that are targets of the loss, each of shape (samples, …).
            samples: Batch size.
        """
        present = [index for index in targets if index < len(batch)]
        if self.samples is None or not present or not samples:
            return
        same = all(self._is_as_before(index, batch[index], samples) for index in present)
        self.samples = self.samples + samples if same else None

    def _is_as_before(self, index: int, target: torch.Tensor, samples: int) -> bool:
        if target.ndim == 0 or target.size(0) != samples:
            return False
        first = self._first.setdefault(index, target[0].clone())
        return target.shape[1:] == first.shape and bool((target == first).all())
