"""Accumulates the loss of each step without synchronizing with the device."""

from __future__ import annotations

import torch

from stormproof.errors import RanksDisagreeError


class StepLosses:
    """Sums the losses of the batches of each step and keeps the sums on the device until they are read.

    Args:
        gathered_steps: Number of steps whose losses are exchanged together. Must be at least 1.

    Example:
        >>> losses = StepLosses(gathered_steps=10)
        >>> losses.add(0.25)
        >>> losses.add(0.5)
        >>> losses.finish_step(step=1)
        >>> row = losses.row(skipped_steps=0, device=torch.device("cpu"))
        >>> losses.read([row.tolist()])
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

    @property
    def has_finished(self) -> bool:
        """True if finished steps have unread losses."""
        return bool(self._step_losses)

    def row(self, skipped_steps: int, device: torch.device) -> torch.Tensor:
        """Returns the values that the ranks exchange.

        They are the number of skipped steps, the number of finished steps, and the losses of the first
        ``gathered_steps`` finished steps, padded with zeros.

        Args:
            skipped_steps: Number of steps that this rank has skipped.
            device: Device of the result.

        Returns:
            float32 values, ``(2 + gathered_steps,)``.
        """
        losses = [
            torch.as_tensor(loss, dtype=torch.float32, device=device).reshape(1)
            for _, loss in self._step_losses[: self._gathered_steps]
        ]
        counts = torch.tensor([skipped_steps, len(self._step_losses)], dtype=torch.float32, device=device)
        return torch.cat([counts, *losses, counts.new_zeros(self._gathered_steps - len(losses))])

    def read(self, rows: list[list[float]]) -> list[tuple[int, float]]:
        """Removes up to ``gathered_steps`` finished steps and returns them with their mean losses over all ranks.

        Args:
            rows: Results of :meth:`row` on all ranks.

        Raises:
            RanksDisagreeError: If the ranks have skipped or finished different numbers of steps.
        """
        for index, verb in enumerate(("skipped", "finished")):
            counts = [int(row[index]) for row in rows]
            if counts != counts[:1] * len(counts):
                raise RanksDisagreeError(
                    f"the ranks have {verb} different numbers of steps ({counts}), so their gradients differed: "
                    "restart all ranks"
                )
        finished, self._step_losses = (
            self._step_losses[: self._gathered_steps],
            self._step_losses[self._gathered_steps :],
        )
        means = torch.tensor(rows, dtype=torch.float32)[:, 2:].mean(0).tolist()
        return [(step, mean) for (step, _), mean in zip(finished, means, strict=False)]
