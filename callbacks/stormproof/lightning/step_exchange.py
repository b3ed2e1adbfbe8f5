"""Exchanges the numbers of several callbacks between the ranks in one collective."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytorch_lightning as pl
import torch

from stormproof.distributed.collectives import SYNC_EVERY_N_STEPS, all_gather_rows
from stormproof.lightning import internals
from stormproof.lightning.per_trainer import PerTrainer

Numbers = Sequence[float] | torch.Tensor


class StepExchange(PerTrainer):
    """Gathers the numbers of all callbacks from all ranks as soon as one callback reads its numbers.

    The other callbacks reuse the result until the next batch.

    Args:
        trainer: Trainer in any stage.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        super().__init__(trainer)
        self._all_numbers: list[ExchangedNumbers] = []
        self._position: tuple[int, ...] = ()

    def add(self, collect: Callable[[], Numbers]) -> ExchangedNumbers:
        """Adds the numbers of a callback. All ranks must add the same numbers in the same order.

        Args:
            collect: Function that returns the current numbers of this rank. They are converted to float32. Their count
                must be constant and equal on all ranks. It must not raise: the other ranks would wait forever.
        """
        numbers = ExchangedNumbers(self, collect)
        self._all_numbers.append(numbers)
        return numbers

    def gather(self) -> None:
        """Gathers all numbers from all ranks. Synchronizes with the device."""
        device = self._trainer.strategy.root_device
        values = [
            torch.as_tensor(numbers.collect(), dtype=torch.float32, device=device) for numbers in self._all_numbers
        ]
        parts = all_gather_rows(torch.cat(values)).cpu().split([len(part) for part in values], dim=1)
        for numbers, part in zip(self._all_numbers, parts, strict=True):
            numbers.rows = part.tolist()
        self._position = internals.loop_position(self._trainer)

    def drop_old_rows(self) -> None:
        """Drops what was gathered before the last batch."""
        if self._position != internals.loop_position(self._trainer):
            for numbers in self._all_numbers:
                numbers.rows = None

    def remove(self, numbers: ExchangedNumbers) -> None:
        """Removes numbers. The exchange is removed from the trainer with its last numbers."""
        if numbers in self._all_numbers:
            self._all_numbers.remove(numbers)
        if not self._all_numbers:
            self.remove_from(self._trainer)


def call_at_exchange_steps(trainer: pl.Trainer, function: Callable[[], None]) -> Callable[[], None]:
    """Calls ``function`` after each batch that passes a step at which callbacks exchange numbers regularly.

    Several optimizers can pass a step within a batch.

    Returns:
        Function that undoes this.
    """
    last_step = trainer.global_step

    def call_if_passed() -> None:
        nonlocal last_step
        previous_step, last_step = last_step, trainer.global_step
        if last_step // SYNC_EVERY_N_STEPS > previous_step // SYNC_EVERY_N_STEPS:
            function()

    return internals.call_after_batch(trainer, call_if_passed)


class ExchangedNumbers:
    """Numbers of one callback in a :class:`StepExchange`.

    Attributes:
        collect: Function that returns the current numbers of this rank.
        rows: Numbers of all ranks, by rank. None before they are gathered and after they are read.
    """

    def __init__(self, exchange: StepExchange, collect: Callable[[], Numbers]) -> None:
        self._exchange = exchange
        self.collect = collect
        self.rows: list[list[float]] | None = None

    def read(self) -> list[list[float]]:
        """Returns the numbers of all ranks. Gathers all numbers unless :meth:`take` returns them.

        All ranks must call this together.
        """
        rows = self.take()
        if rows is None:
            self._exchange.gather()
            rows = self.take()
        assert rows is not None, "the numbers were removed"
        return rows

    def take(self) -> list[list[float]] | None:
        """Returns the numbers of all ranks if they were gathered since the last batch and not read yet, else None."""
        rows, self.rows = self.peek(), None
        return rows

    def peek(self) -> list[list[float]] | None:
        """Returns the same as :meth:`take`, but keeps the numbers for a later reader."""
        self._exchange.drop_old_rows()
        return self.rows

    def remove(self) -> None:
        """Removes the numbers from the exchange."""
        self._exchange.remove(self)
