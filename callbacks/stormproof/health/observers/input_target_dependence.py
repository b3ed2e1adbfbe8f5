"""Whether inputs tell anything of targets, whatever the network makes of them."""

from __future__ import annotations

import math

import torch

MAX_SAMPLES = 512
"""Samples kept."""
MAX_ENTRIES = 256
"""Entries of an input looked at."""
MIN_SIGMAS = 4.5
"""Standard deviations of chance, for the largest of a thousand numbers to be beyond once in 150 times."""


class DependenceTest:
    """Keeps samples, and tests whether inputs and targets belong together.

    Two tests, of which either is enough: whether any single entry of the inputs is correlated with the target, or with
    one class of it; and whether the targets of nearest neighbours are more alike than chance has it.
    """

    def __init__(self) -> None:
        self._inputs: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []
        self._count = 0
        self._result: bool | None = None  # of the samples so far

    def add(self, inputs: torch.Tensor, target: torch.Tensor) -> None:
        """Takes inputs (n, entries), and the targets (N, …) of the batch whose first n samples they are."""
        if self._count >= MAX_SAMPLES or target.ndim == 0 or target.size(0) < inputs.size(0):
            return
        stride = max(inputs.size(1) // MAX_ENTRIES, 1)
        batch_targets = target[: inputs.size(0)]
        if self._inputs and (inputs[:, ::stride].size(1) != self._inputs[0].size(1)):
            return
        self._inputs.append(inputs[:, ::stride].detach().cpu().double())
        self._targets.append(
            (
                batch_targets.flatten(1)[:, 0]
                if batch_targets.ndim > 1 and batch_targets.is_floating_point()
                else batch_targets
            ).cpu()
        )
        self._count += inputs.size(0)
        self._result = None

    def is_dependent(self) -> bool | None:
        """Whether they are; None with fewer than 100 samples, or targets that are neither numbers nor classes."""
        if self._result is None:
            self._result = self._compute()
        return self._result

    def _compute(self) -> bool | None:
        if self._count < 100 or any(batch_targets.ndim != 1 for batch_targets in self._targets):
            return None
        inputs, target = torch.cat(self._inputs), torch.cat(self._targets)
        target_columns = _to_columns(target)
        if (
            target_columns is None
            or not bool(torch.isfinite(inputs).all())
            or not bool(torch.isfinite(target_columns).all())
        ):
            return None
        return (
            _max_correlation(inputs, target_columns) > MIN_SIGMAS
            or _neighbor_similarity(inputs, target_columns) > MIN_SIGMAS
        )


def _to_columns(target: torch.Tensor) -> torch.Tensor | None:
    """The target as columns of numbers: one for each class of at most 20, or itself."""
    if target.is_floating_point():
        return target.double()[:, None]
    classes = target.unique()
    return None if len(classes) < 2 else (target[:, None] == classes[None, :20]).double()


def _standardize(columns: torch.Tensor) -> torch.Tensor:
    centered = columns - columns.mean(0)
    return centered / centered.square().mean(0).sqrt().clamp_min(1e-12)


def _max_correlation(inputs: torch.Tensor, target_columns: torch.Tensor) -> float:
    """The largest correlation of an entry with a column, in standard deviations of chance."""
    correlations = _standardize(inputs).T @ _standardize(target_columns) / len(inputs)
    return float(correlations.abs().max()) * math.sqrt(len(inputs))


def _neighbor_similarity(inputs: torch.Tensor, target_columns: torch.Tensor) -> float:
    """How much more alike the targets of nearest neighbours are, in standard deviations of chance."""
    nearest = torch.cdist(_standardize(inputs), _standardize(inputs)).fill_diagonal_(math.inf).argmin(1)
    targets = _standardize(target_columns)
    products = (targets * targets[nearest]).sum(1)
    return float(products.mean() / (products.std() / math.sqrt(len(products))).clamp_min(1e-12))
