"""The loss of each step, and when it is read."""

from __future__ import annotations

from typing import Any

import torch

from stormproof.distributed.collectives import side_by_side, world_size
from stormproof.errors import RanksDisagreeError


class StepLosses:
    """Adds up what the batches of a step contribute to its loss, and keeps it on the device until it is asked for.

    Example:
        >>> losses = StepLosses()
        >>> losses.add(torch.tensor(0.25), scaler=None)
        >>> losses.add(torch.tensor(0.5), scaler=None)
        >>> losses.keep(step=1)
        >>> losses.read(skipped=0, device=torch.device("cpu"))
        [(1, 0.75)]
    """

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []
        self._kept: list[tuple[int, torch.Tensor]] = []

    @property
    def going_on(self) -> bool:
        """Whether a step has begun whose loss was neither kept nor dropped."""
        return bool(self._parts)

    def add(self, loss: torch.Tensor, scaler: Any) -> None:
        """Takes a batch's part of the loss, 0-d, as it is handed to the backward pass: multiplied by its scale."""
        part = loss.detach().float()
        self._parts.append(part if scaler is None else part / scaler.scale(torch.ones_like(part)))

    def value(self) -> float | None:
        """This rank's loss of the step that goes on, if it has one; waits for the device."""
        return float(torch.stack(self._parts).sum()) if self._parts else None

    def drop(self) -> None:
        """The step that goes on is not kept."""
        self._parts = []

    def keep(self, step: int) -> None:
        """The step that goes on is done, and the ``step``-th."""
        if self._parts:
            self._kept.append((step, torch.stack(self._parts).sum()))
        self._parts = []

    def forget(self) -> None:
        """Drops all."""
        self._parts, self._kept = [], []

    def read(self, skipped: int, device: torch.device) -> list[tuple[int, float]]:
        """The kept steps and their losses, the ranks' mean. All ranks call it together.

        Args:
            skipped: how many steps this rank has skipped, which must be as many on each.
            device: the one that the ranks talk from.

        Raises:
            RanksDisagreeError: if it is not.
        """
        if world_size() > 1:
            agree_on_counts(skipped, len(self._kept), device)
        if not self._kept:
            return []
        steps, losses = zip(*self._kept, strict=True)
        self._kept = []
        return list(zip(steps, side_by_side(torch.stack(losses)).mean(0).tolist(), strict=True))


def agree_on_counts(skipped: int, kept: int, device: torch.device) -> None:
    """Stops all ranks if they skipped different numbers of steps."""
    counts = side_by_side(torch.tensor([skipped, kept], device=device)).tolist()
    if any(count != counts[0] for count in counts):
        raise RanksDisagreeError(
            f"the ranks have skipped {[count[0] for count in counts]} steps, so that their gradients were not the "
            "same: start all of them again"
        )
