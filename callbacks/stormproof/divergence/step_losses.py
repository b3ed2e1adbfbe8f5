"""Accumulates the loss of each step without synchronizing with the device."""

from __future__ import annotations

import torch

from stormproof.distributed.collectives import all_gather_rows, world_size
from stormproof.errors import RanksDisagreeError


class StepLosses:
    """Sums the losses of the batches of each step and keeps the sums on the device until they are read.

    Args:
        gathered_steps: Number of steps whose losses are gathered from all ranks in one collective. Must be at least 1.

    Example:
        >>> losses = StepLosses(gathered_steps=10)
        >>> losses.add(0.25)
        >>> losses.add(0.5)
        >>> losses.finish_step(step=1)
        >>> losses.read(skipped_steps=0, device=torch.device("cpu"))
        [(1, 0.75)]
    """

    def __init__(self, gathered_steps: int) -> None:
        self._gathered_steps = gathered_steps
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
        step_losses, self._step_losses = self._step_losses, []
        if world_size() == 1 and not step_losses:
            return []
        counts = torch.tensor([skipped_steps, len(step_losses)], dtype=torch.float32, device=device)
        mean_losses: list[float] = []
        for start in range(0, max(1, len(step_losses)), self._gathered_steps):
            chunk = [
                torch.as_tensor(loss, dtype=torch.float32, device=device).reshape(1)
                for _, loss in step_losses[start : start + self._gathered_steps]
            ]
            padding = counts.new_zeros(self._gathered_steps - len(chunk))  # equal sizes, whatever the ranks recorded
            rows = all_gather_rows(torch.cat([counts, *chunk, padding]))
            _assert_equal(rows[:, :2].tolist())
            mean_losses += rows[:, 2 : 2 + len(chunk)].mean(0).tolist()
        return list(zip([step for step, _ in step_losses], mean_losses, strict=True))


def _assert_equal(counts: list[list[float]]) -> None:
    """Raises RanksDisagreeError if ranks have skipped or recorded different numbers of steps."""
    if any(count != counts[0] for count in counts):
        raise RanksDisagreeError(
            f"the ranks have skipped different numbers of steps ({[int(count[0]) for count in counts]}), so their "
            "gradients differed: restart all ranks"
        )
