"""The loss of each step, and when it is read."""

from __future__ import annotations

from typing import Any

import torch

from stormproof.distributed.collectives import all_gather_rows, world_size
from stormproof.errors import RanksDisagreeError


class StepLosses:
    """Adds up what the batches of a step contribute to its loss, and keeps it on the device until it is asked for.

    Example:
        >>> losses = StepLosses()
        >>> losses.add(torch.tensor(0.25), scaler=None)
        >>> losses.add(torch.tensor(0.5), scaler=None)
        >>> losses.finish_step(step=1)
        >>> losses.read(skipped_steps=0, device=torch.device("cpu"))
        [(1, 0.75)]
    """

    def __init__(self) -> None:
        self._batch_losses: list[torch.Tensor] = []
        self._step_losses: list[tuple[int, torch.Tensor]] = []

    @property
    def is_accumulating(self) -> bool:
        """Whether a step has begun whose loss was neither kept nor dropped."""
        return bool(self._batch_losses)

    def add(self, loss: torch.Tensor, scaler: Any) -> None:
        """Takes a batch's part of the loss, 0-d, as it is handed to the backward pass: multiplied by its scale."""
        batch_loss = loss.detach().float()
        self._batch_losses.append(
            batch_loss if scaler is None else batch_loss / scaler.scale(torch.ones_like(batch_loss))
        )

    def accumulated_loss(self) -> float | None:
        """This rank's loss of the step that goes on, if it has one; waits for the device."""
        return float(torch.stack(self._batch_losses).sum()) if self._batch_losses else None

    def discard_step(self) -> None:
        """The step that goes on is not kept."""
        self._batch_losses = []

    def finish_step(self, step: int) -> None:
        """The step that goes on is done, and the ``step``-th."""
        if self._batch_losses:
            self._step_losses.append((step, torch.stack(self._batch_losses).sum()))
        self._batch_losses = []

    def clear(self) -> None:
        """Drops all."""
        self._batch_losses, self._step_losses = [], []

    def read(self, skipped_steps: int, device: torch.device) -> list[tuple[int, float]]:
        """The kept steps and their losses, the ranks' mean. All ranks call it together.

        Args:
            skipped_steps: how many steps this rank has skipped, which must be as many on each.
            device: the one that the ranks talk from.

        Raises:
            RanksDisagreeError: if it is not.
        """
        if world_size() > 1:
            assert_equal_counts(skipped_steps, len(self._step_losses), device)
        if not self._step_losses:
            return []
        steps, losses = zip(*self._step_losses, strict=True)
        self._step_losses = []
        return list(zip(steps, all_gather_rows(torch.stack(losses)).mean(0).tolist(), strict=True))


def assert_equal_counts(skipped_steps: int, recorded_steps: int, device: torch.device) -> None:
    """Stops all ranks if they skipped different numbers of steps."""
    counts = all_gather_rows(torch.tensor([skipped_steps, recorded_steps], device=device)).tolist()
    if any(count != counts[0] for count in counts):
        raise RanksDisagreeError(
            f"the ranks have skipped {[count[0] for count in counts]} steps, so that their gradients were not the "
            "same: start all of them again"
        )
