"""Exchanges the numbers of several callbacks between the ranks in one collective."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytorch_lightning as pl
import torch

from stormproof.distributed.collectives import all_gather_rows
from stormproof.lightning import internals

Numbers = Sequence[float] | torch.Tensor


class StepExchange:
    """Gathers the numbers of all callbacks from all ranks when one callback needs its own.

    The others then need no collective before the next batch. Call :func:`get_exchange` instead of the constructor.

    Args:
        trainer: Trainer in any stage.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._collect_functions: dict[str, Callable[[], Numbers]] = {}
        self._gathered: dict[str, list[list[float]]] = {}
        self._position: tuple[int, ...] = ()

    def add(self, name: str, collect: Callable[[], Numbers]) -> Callable[[], None]:
        """Adds numbers. All ranks must add the same ones in the same order.

        Args:
            name: Name for :meth:`read` and :meth:`take`.
            collect: Returns the current numbers of this rank, which become float32. Their count must be constant and
                equal on all ranks. Must not raise an exception, because the other ranks wait.

        Returns:
            Function that removes them.
        """
        self._collect_functions[name] = collect
        return lambda: self._remove(name)

    def read(self, name: str) -> list[list[float]]:
        """Returns the numbers of all ranks. Gathers all numbers, unless these were gathered and not read yet.

        All ranks must call this together. Synchronizes with the device.
        """
        values = self.take(name)
        if values is None:
            self._gather()
            values = self._gathered.pop(name)
        return values

    def take(self, name: str) -> list[list[float]] | None:
        """Returns the numbers of all ranks if they were gathered since the last batch and not read yet, else None."""
        if self._position != internals.loop_position(self._trainer):
            self._gathered = {}
        return self._gathered.pop(name, None)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Makes copies and pickles None. A copied trainer creates its own exchange."""
        return type(None), ()

    def _gather(self) -> None:
        device = self._trainer.strategy.root_device
        values = [
            torch.as_tensor(collect(), dtype=torch.float32, device=device)
            for collect in self._collect_functions.values()
        ]
        parts = all_gather_rows(torch.cat(values)).cpu().split([len(part) for part in values], dim=1)
        self._gathered = {name: part.tolist() for name, part in zip(self._collect_functions, parts, strict=True)}
        self._position = internals.loop_position(self._trainer)

    def _remove(self, name: str) -> None:
        self._collect_functions.pop(name, None)
        if not self._collect_functions:
            vars(self._trainer).pop(_ATTRIBUTE, None)


_ATTRIBUTE = "_stormproof_step_exchange"
"""Attribute of a trainer with its exchange."""


def get_exchange(trainer: pl.Trainer) -> StepExchange:
    """Returns the exchange of a trainer. Creates it in the first call. It ends when all numbers are removed."""
    exchange = vars(trainer).get(_ATTRIBUTE)
    if exchange is None:
        exchange = vars(trainer)[_ATTRIBUTE] = StepExchange(trainer)
    return exchange
