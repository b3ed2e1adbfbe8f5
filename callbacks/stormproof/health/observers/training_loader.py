"""Type and number of workers of the training loader."""

from __future__ import annotations

import pytorch_lightning as pl
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from stormproof.resumable_loader import ResumableLoader


def describe_loader(trainer: pl.Trainer) -> tuple[str, int | None]:
    """Returns the type of the training loader and its number of workers.

    With several loaders, it is the one with the fewest workers, which is likely the slowest. The number is
    None if the loader is not a torch ``DataLoader``.
    """
    loaders = [
        loader.wrapped if isinstance(loader, ResumableLoader) else loader
        for loader in tree_leaves(trainer.train_dataloader)
    ]
    workers = [
        (type(loader).__name__, loader.num_workers if isinstance(loader, DataLoader) else None) for loader in loaders
    ]
    return min(workers, key=lambda loader: -1 if loader[1] is None else loader[1], default=("DataLoader", 0))
