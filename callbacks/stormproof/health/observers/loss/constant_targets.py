"""Counts samples with identical targets."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch


class ConstantTargetCounter:
    """Counts samples until two targets differ.

    Attributes:
        samples: Number of samples with identical targets. None if two targets differ, or if the first dimension of a
            target is not the batch size. Repetitions of a single sample in batches of one are not counted.
    """

    def __init__(self) -> None:
        self.samples: int | None = 0
        self._first_sample: dict[int, torch.Tensor] = {}  # by index in the batch

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
        if not all(self._is_constant(index, batch[index], samples) for index in available_indices):
            self.samples = None
            return
        other_indices = [index for index in range(len(batch)) if index not in target_indices]
        is_single_sample = samples == 1 and all(
            self._is_constant(index, batch[index], samples) for index in other_indices
        )
        if not is_single_sample:
            self.samples += samples

    def _is_constant(self, index: int, tensor: torch.Tensor, samples: int) -> bool:
        """Returns whether all entries of a tensor of a batch equal the first one of the run."""
        if tensor.ndim == 0 or tensor.size(0) != samples:
            return False
        first_entry = self._first_sample.setdefault(index, tensor[0].clone())
        if tensor.shape[1:] != first_entry.shape or may_be_center(first_entry):
            return False
        return bool((tensor == first_entry).all())


def may_be_center(target: torch.Tensor) -> bool:
    """Returns whether a target may be a fixed center, as in Deep SVDD: different values that are not all integers.

    Targets that are identical by mistake are usually integers, or have equal entries.
    """
    if not target.is_floating_point() or target.numel() < 2:
        return False
    return bool((target != target.round()).any()) and bool((target != target.flatten()[0]).any())
