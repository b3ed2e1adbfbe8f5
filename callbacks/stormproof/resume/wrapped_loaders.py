"""Makes the training loaders of a trainer resumable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from stormproof.data.sampler_state import is_stateful
from stormproof.lightning import internals
from stormproof.resumable_loader import default_seed, resumable


def wrap_training_loaders(trainer: pl.Trainer) -> Callable[[], None]:
    """Wraps each training loader with :func:`resumable` when Lightning requests it.

    Each loader gets its own seed. The seed depends on the epoch in which Lightning requests the loader. Otherwise
    ``reload_dataloaders_every_n_epochs`` would repeat the order of the first epoch. Loaders that ``resumable`` does not
    support are left unchanged, and ``CheckpointRecovery`` warns about them.

    Returns:
        Function that undoes this.
    """
    is_distributed = internals.uses_distributed_sampler(trainer)

    def wrap(loaders: list[Any]) -> list[Any]:
        base_seed = default_seed() + trainer.current_epoch * len(loaders)
        return [
            resumable(loader, base_seed + index, is_distributed)
            if isinstance(loader, DataLoader) or is_stateful(loader)
            else loader
            for index, loader in enumerate(loaders)
        ]

    return internals.change_training_loaders(trainer, wrap)
