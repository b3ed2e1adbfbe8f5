"""Splits of a data module as comparable arrays."""

import numpy as np
import torch
from torch.utils.data import DataLoader

from stormproof_train.data.in_memory import Split
from stormproof_train.data.split_data import SplitDataModule


def concatenate_batches(loader: DataLoader) -> Split:
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def load_splits(data: SplitDataModule) -> dict[str, Split]:
    data.setup("fit")
    data.setup("test")
    return {
        "train": concatenate_batches(data.train_dataloader()),
        "validation": concatenate_batches(data.val_dataloader()),
        "test": concatenate_batches(data.test_dataloader()),
    }


def sort_rows(split: Split) -> np.ndarray:
    """Returns the samples as sorted rows, independent of the loader's order."""
    rows = np.concatenate([part.reshape(len(part), -1).double().numpy() for part in split], axis=1)
    return rows[np.lexsort(rows.T)]


def to_sorted_rows(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    rows = np.concatenate([features.reshape(len(features), -1), target.reshape(len(target), -1)], axis=1)
    return rows[np.lexsort(rows.T)]
