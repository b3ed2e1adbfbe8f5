"""Objects that the callbacks of a trainer share."""

from __future__ import annotations

from typing import Self

import pytorch_lightning as pl


class PerTrainer:
    """An object that all callbacks of a trainer share. Call :meth:`of` instead of the constructor.

    Copies and pickles become None, so that a copied trainer creates its own object.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer

    @classmethod
    def of(cls, trainer: pl.Trainer) -> Self:
        """Returns the object of a trainer. Creates it in the first call."""
        shared = vars(trainer).get(cls._attribute())
        if shared is None:
            shared = vars(trainer)[cls._attribute()] = cls(trainer)
        return shared

    @classmethod
    def remove_from(cls, trainer: pl.Trainer) -> Self | None:
        """Removes the object of a trainer and returns it, or None if it has no object."""
        return vars(trainer).pop(cls._attribute(), None)

    @classmethod
    def _attribute(cls) -> str:
        return f"_stormproof_{cls.__name__}"

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Makes copies and pickles None."""
        return type(None), ()
