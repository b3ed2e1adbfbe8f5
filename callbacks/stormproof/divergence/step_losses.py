"""Accumulates the loss of each step without synchronizing with the device."""

from __future__ import annotations

import torch

from stormproof.distributed.collectives import all_gather_rows, world_size
from stormproof.errors import RanksDisagreeError


class StepLosses:
    """Sums the losses of the batches of each step and keeps the sums on the device until they are read.

    Example:
        >>> losses = StepLosses()
        >>> losses.add(0.25)
        >>> losses.add(0.5)
        >>> losses.finish_step(step=1)
        >>> losses.read(skipped_steps=0, device=torch.device("cpu"))
        [(1, 0.75)]
    """

    def __init__(self) -> None:
        self._batch_losses: list[float | torch.Tensor] = []
        self._step_losses: list[tuple[int, float | torch.Tensor]] = []

    @property
    def is_accumulating(self) -> bool:
        """True if the current step has losses and was neither finished nor discarded."""
        return bool(self._batch_losses)

    def add(self, loss: float | torch.Tensor) -> None:
        """Adds the loss of a batch to the current step, as a number or a 0-d tensor."""
        self._batch_losses.append(loss)

    def accumulated_loss(self) -> float | None:
        """Returns the loss of the current step on this rank, or None without batches. Synchronizes with the device."""
        return float(sum(self._batch_losses)) if self._batch_losses else None

    def discard_step(self) -> None:
        """Discards the losses of the current step."""
        self._batch_losses = []

    def finish_step(self, step: int) -> None:
        """Ends the current step, which is optimizer step ``step``."""
        if self._batch_losses:
            self._step_losses.append((step, sum(self._batch_losses)))
        self._batch_losses = []

    def clear(self) -> None:
        """Discards all losses."""
        self._batch_losses, self._step_losses = [], []

    def read(self, skipped_steps: int, device: torch.device) -> list[tuple[int, float]]:
        """Returns finished steps and the mean of their losses over all ranks. All ranks must call this together.

        Args:
            skipped_steps: Number of steps that this rank has skipped.
            device: Device for communication between ranks.

        Raises:
            RanksDisagreeError: If the ranks have skipped different numbers of steps.
        """
        if world_size() > 1:
            assert_equal_counts(skipped_steps, len(self._step_losses), device)
        if not self._step_losses:
            return []
        steps, losses = zip(*self._step_losses, strict=True)
        self._step_losses = []
        values = torch.stack([torch.as_tensor(loss, dtype=torch.float32, device=device) for loss in losses])
        return list(zip(steps, all_gather_rows(values).mean(0).tolist(), strict=True))


def assert_equal_counts(skipped_steps: int, recorded_steps: int, device: torch.device) -> None:
    """Raises RanksDisagreeError on all ranks if the ranks have skipped different numbers of steps."""
    counts = all_gather_rows(torch.tensor([skipped_steps, recorded_steps], device=device)).tolist()
    if any(count != counts[0] for count in counts):
        raise RanksDisagreeError(
            f"the ranks have skipped different numbers of steps ({[count[0] for count in counts]}), so their gradients "
            "differed: restart all ranks"
        )
