"""Counts samples with identical targets."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch


class ConstantTargetCounter:
    """Counts samples until two targets differ.

    Attributes:
        samples: Number of samples with identical targets. None if two targets differ, or if the first dimension of a
            target is not the batch size.
    """

    def __init__(self) -> None:
        self.samples: int | None = 0
        self._first_targets: dict[int, torch.Tensor] = {}

    def add(self, batch: Sequence[torch.Tensor], target_indices: Collection[int], samples: int) -> None:
        """Adds a batch.

        Args:
            batch: Tensors of the batch.
            target_indices: Indices of the tensors that are targets of the loss, each of shape (samples, …).
            samples: Batch size.
        """
        available_indices = [index for index in target_indices if index < len(batch)]
        if self.samples is None or not available_indices or not samples:
            return
        is_constant = all(self._is_constant(index, batch[index], samples) for index in available_indices)
        self.samples = self.samples + samples if is_constant else None

    def _is_constant(self, index: int, target: torch.Tensor, samples: int) -> bool:
        """Returns whether all targets of a batch equal the first target of the run."""
        if target.ndim == 0 or target.size(0) != samples:
            return False
        first_target = self._first_targets.setdefault(index, target[0].clone())
        return target.shape[1:] == first_target.shape and bool((target == first_target).all())
