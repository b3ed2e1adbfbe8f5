"""Whether inputs tell anything of targets, whatever the network makes of them."""

from __future__ import annotations

import math

import torch

SAMPLES = 512
"""Samples kept."""
ENTRIES = 256
"""Entries of an input looked at."""
SIGMAS = 4.5
"""Standard deviations of chance, for the largest of a thousand numbers to be beyond once in 150 times."""


class Samples:
    """Keeps samples, and tests whether inputs and targets belong together.

    Two tests, of which either is enough: whether any single entry of the inputs is correlated with the target, or with
    one class of it; and whether the targets of nearest neighbours are more alike than chance has it.
    """

    def __init__(self) -> None:
        self._inputs: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []
        self._count = 0
        self._answer: bool | None = None  # of the samples so far

    def add(self, inputs: torch.Tensor, target: torch.Tensor) -> None:
        """Takes inputs (n, entries), and the targets (N, …) of the batch whose first n samples they are."""
        if self._count >= SAMPLES or target.ndim == 0 or target.size(0) < inputs.size(0):
            return
        width = max(inputs.size(1) // ENTRIES, 1)
        some = target[: inputs.size(0)]
        if self._inputs and (inputs[:, ::width].size(1) != self._inputs[0].size(1)):
            return
        self._inputs.append(inputs[:, ::width].detach().cpu().double())
        self._targets.append((some.flatten(1)[:, 0] if some.ndim > 1 and some.is_floating_point() else some).cpu())
        self._count += inputs.size(0)
        self._answer = None

    def are_related(self) -> bool | None:
        """Whether they are; None with fewer than 100 samples, or targets that are neither numbers nor classes."""
        if self._answer is None:
            self._answer = self._test()
        return self._answer

    def _test(self) -> bool | None:
        if self._count < 100 or any(each.ndim != 1 for each in self._targets):
            return None
        inputs, target = torch.cat(self._inputs), torch.cat(self._targets)
        wanted = _columns(target)
        if wanted is None or not bool(torch.isfinite(inputs).all()) or not bool(torch.isfinite(wanted).all()):
            return None
        return _correlation(inputs, wanted) > SIGMAS or _likeness(inputs, wanted) > SIGMAS


def _columns(target: torch.Tensor) -> torch.Tensor | None:
    """The target as columns of numbers: one for each class of at most 20, or itself."""
    if target.is_floating_point():
        return target.double()[:, None]
    classes = target.unique()
    return None if len(classes) < 2 else (target[:, None] == classes[None, :20]).double()


def _standardized(columns: torch.Tensor) -> torch.Tensor:
    centered = columns - columns.mean(0)
    return centered / centered.square().mean(0).sqrt().clamp_min(1e-12)


def _correlation(inputs: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest correlation of an entry with a column, in standard deviations of chance."""
    correlations = _standardized(inputs).T @ _standardized(wanted) / len(inputs)
    return float(correlations.abs().max()) * math.sqrt(len(inputs))


def _likeness(inputs: torch.Tensor, wanted: torch.Tensor) -> float:
    """How much more alike the targets of nearest neighbours are, in standard deviations of chance."""
    near = torch.cdist(_standardized(inputs), _standardized(inputs)).fill_diagonal_(math.inf).argmin(1)
    targets = _standardized(wanted)
    products = (targets * targets[near]).sum(1)
    return float(products.mean() / (products.std() / math.sqrt(len(products))).clamp_min(1e-12))
