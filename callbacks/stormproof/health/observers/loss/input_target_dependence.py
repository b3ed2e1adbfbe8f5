"""Tests whether targets depend on inputs, independently of the network."""

from __future__ import annotations

import math

import torch

MAX_SAMPLES = 512
"""Maximum number of samples to keep."""
MAX_ENTRIES = 256
"""Maximum number of entries of an input to test."""
MIN_SIGMAS = 4.5
"""Significance threshold in standard deviations. By chance, the maximum of 1,000 normal variables exceeds it once in
150 tests."""


class DependenceTest:
    """Collects samples and tests whether targets depend on inputs.

    Of floating-point targets with several columns, only one is tested. Targets depend on inputs if one of two tests is
    significant. The first is the largest correlation of a single input
    entry with the target or with one of its classes. The second is the similarity of the targets of nearest neighbors.
    """

    def __init__(self) -> None:
        self._inputs: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []
        self._count = 0
        self._column: int | None = None  # target column with the largest variance in the first batch
        self._result: bool | None = None  # for the samples so far

    def add(self, inputs: torch.Tensor, target: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            inputs: Inputs of the first n samples, of shape (n, entries).
            target: Targets of all samples, of shape (N, …).
        """
        if self._count >= MAX_SAMPLES or target.ndim == 0 or target.size(0) < inputs.size(0):
            return
        stride = max(inputs.size(1) // MAX_ENTRIES, 1)
        batch_targets = target[: inputs.size(0)]
        if self._inputs and (inputs[:, ::stride].size(1) != self._inputs[0].size(1)):
            return
        if batch_targets.ndim > 1 and batch_targets.is_floating_point():
            columns = batch_targets.flatten(1)
            if self._column is None:
                self._column = int(columns.var(0, correction=0).argmax())
            if self._column >= columns.size(1):
                return
            batch_targets = columns[:, self._column]
        self._inputs.append(inputs[:, ::stride].detach().cpu().double())
        self._targets.append(batch_targets.cpu())
        self._count += inputs.size(0)
        self._result = None

    def is_dependent(self) -> bool | None:
        """Returns the result of the test. None with fewer than 100 samples or multidimensional targets."""
        if self._result is None:
            self._result = self._compute()
        return self._result

    def _compute(self) -> bool | None:
        """Runs both tests on the samples so far."""
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
    """Returns the target as columns: indicators of up to 20 classes, or the target itself."""
    if target.is_floating_point():
        return target.double()[:, None]
    classes = target.unique()
    return None if len(classes) < 2 else (target[:, None] == classes[None, :20]).double()


def _standardize(columns: torch.Tensor) -> torch.Tensor:
    """Scales each column to mean 0 and standard deviation 1."""
    centered = columns - columns.mean(0)
    return centered / centered.square().mean(0).sqrt().clamp_min(1e-12)


def _max_correlation(inputs: torch.Tensor, target_columns: torch.Tensor) -> float:
    """Returns the largest correlation of an entry with a column, in standard deviations under independence."""
    correlations = _standardize(inputs).T @ _standardize(target_columns) / len(inputs)
    return float(correlations.abs().max()) * math.sqrt(len(inputs))


def _neighbor_similarity(inputs: torch.Tensor, target_columns: torch.Tensor) -> float:
    """Returns the similarity of the targets of nearest neighbors, in standard deviations under independence."""
    nearest = torch.cdist(_standardize(inputs), _standardize(inputs)).fill_diagonal_(math.inf).argmin(1)
    targets = _standardize(target_columns)
    products = (targets * targets[nearest]).sum(1)
    return float(products.mean() / (products.std() / math.sqrt(len(products))).clamp_min(1e-12))
