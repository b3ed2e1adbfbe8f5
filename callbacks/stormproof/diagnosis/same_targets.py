"""Whether all targets are the same."""

from __future__ import annotations

import torch


class SameTargets:
    """Counts the samples whose targets are all the same, until one differs.

    Attributes:
        samples: how many; None once two targets differ, or it cannot be told what the targets are.
    """

    def __init__(self) -> None:
        self.samples: int | None = 0
        self._first: torch.Tensor | None = None

    def add(self, batch: list[torch.Tensor], samples: int) -> None:
        """Takes a batch, of which the second of two tensors is the target, (N, …)."""
        if self.samples is None or len(batch) != 2 or not samples:
            return
        inputs, target = batch
        if target.ndim == 0 or target.size(0) != samples or target is inputs:
            self.samples = None
            return
        if self._first is None:
            self._first = target[0].clone()
        same = target.shape[1:] == self._first.shape and bool((target == self._first).all())
        self.samples = self.samples + samples if same else None
