"""Collects the targets of a run, and counts samples with identical targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from stormproof.health.observers.loss.objective import Objective
from stormproof.health.observers.torch_losses import LOSS_INPUTS, best_constant

MAX_POOL_ENTRIES = 20_000
"""Maximum number of entries of targets to keep for the best constant."""


class TargetPool:
    """Collects targets and evaluates the best constant prediction for them."""

    def __init__(self) -> None:
        self._targets: list[torch.Tensor] = []
        self._entries = 0

    @property
    def is_empty(self) -> bool:
        """Returns whether no targets were added."""
        return not self._targets

    @property
    def identical_samples(self) -> int | None:
        """Number of samples with identical targets. None if two targets differ."""
        if not self._targets:
            return 0
        target = torch.cat(self._targets)
        return len(target) if bool((target == target[0]).all()) and not may_be_center(target[0]) else None

    def add(self, target: torch.Tensor) -> None:
        """Adds the targets of a batch, of shape (N, …)."""
        if (
            target.ndim
            and self._entries < MAX_POOL_ENTRIES
            and (not self._targets or target.shape[1:] == self._targets[0].shape[1:])
        ):
            self._targets.append(target.cpu())
            self._entries += target.numel()

    def constant_loss(self, objective: Objective, user_loss: Callable[..., Any] | None) -> float | None:
        """Returns the loss of a batch for the best constant prediction of all targets. None if unknown."""
        if self.is_empty or not objective.samples or (self.identical_samples or 0) > 1:
            return None  # identical targets, as in pairwise ranking, make a constant prediction perfect
        target, prediction = torch.cat(self._targets), objective.prediction
        user_constant_loss = getattr(user_loss or objective.function, "best_constant", None)
        if user_constant_loss is not None:
            return float(user_constant_loss(target.to(objective.target.device)))
        classes = prediction.size(1) if prediction.ndim > 1 else 1
        if objective.is_contrastive:
            return math.log(classes)
        has_other_shape = prediction.shape != objective.target.shape
        if objective.name not in LOSS_INPUTS or (has_other_shape and objective.target.is_floating_point()):
            return None
        target = _merge_other_sizes(target, objective.target.shape[1:])
        constant = best_constant(objective.name, objective.arguments, target, classes)
        if constant is None or not _can_expand(constant.shape, prediction.shape):
            return None
        return float(objective.function(constant.to(prediction).expand_as(prediction), objective.target))

    def state_dict(self) -> list[Any]:
        """Returns the targets as plain values."""
        return [[target.is_floating_point(), target.tolist()] for target in self._targets]

    def load_state_dict(self, state: list[Any]) -> None:
        """Restores the targets."""
        self._targets = [
            torch.tensor(values, dtype=None if is_floating else torch.long) for is_floating, values in state
        ]
        self._entries = sum(target.numel() for target in self._targets)


def _merge_other_sizes(target: torch.Tensor, sizes: torch.Size) -> torch.Tensor:
    """Merges the dimensions whose size differs from ``sizes`` into the samples, as for sequences of another length.

    Args:
        target: Targets of shape (N, …).
        sizes: Size of each dimension after the first one. The target is unchanged if the number of dimensions differs.

    Example:
        >>> _merge_other_sizes(torch.zeros(4, 10, 3), torch.Size([7, 3])).shape
        torch.Size([40, 1, 3])
    """
    if target.ndim == len(sizes) + 1:
        for dimension, size in enumerate(sizes, start=1):
            if target.size(dimension) != size:
                target = target.movedim(dimension, 1).flatten(0, 1).unsqueeze(dimension)
    return target


def _can_expand(shape: torch.Size, other_shape: torch.Size) -> bool:
    """Returns whether a tensor expands to another shape with the same number of dimensions."""
    return len(shape) == len(other_shape) and all(
        size in {1, other_size} for size, other_size in zip(shape, other_shape, strict=True)
    )


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
