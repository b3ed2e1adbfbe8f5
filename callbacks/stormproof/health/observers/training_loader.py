"""Type and number of workers of the training loader."""

from __future__ import annotations

import pytorch_lightning as pl
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from stormproof.resumable_loader import ResumableLoader


def loader_of(trainer: pl.Trainer) -> tuple[str, int | None]:
    """Returns the type of the training loader and its number of workers.

    With several loaders, it is the one with the fewest workers, which is likely the slowest. The number is
    None if the loader is not a torch ``DataLoader``.
    """
    loaders = [
        each.wrapped if isinstance(each, ResumableLoader) else each for each in tree_leaves(trainer.train_dataloader)
    ]
    workers = [(type(each).__name__, each.num_workers if isinstance(each, DataLoader) else None) for each in loaders]
    return min(workers, key=lambda each: -1 if each[1] is None else each[1], default=("DataLoader", 0))
