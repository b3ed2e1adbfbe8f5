"""Base class of data modules with splits for training, validation and test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from stormproof import resumable
from stormproof.resumable_loader import ResumableLoader
from stormproof_train.data.spec import DataSpec
from stormproof_train.data.split_name import SplitName
from stormproof_train.errors import UserError
from stormproof_train.pluralize import pluralize


class SplitDataModule(pl.LightningDataModule):
    """Data module with resumable loaders. Subclasses define the splits in :meth:`load` and :meth:`load_test`.

    Args:
        batch_size: Samples per optimizer step, over all ranks and accumulated batches. Must be at least 1.
        num_workers: Loader processes per rank. Must be at least 0.
        drop_last: If True, drops the last batch of an epoch if it is smaller.
        seed: Seed of the split and of the order of the training samples.

    Attributes:
        collate: Combines a list of samples to a batch. None selects torch's default.
        test_split_name: Split that is tested.

    Raises:
        ValueError: If a number is out of range.
    """

    spec: DataSpec
    collate: Callable[[Any], Any] | None = None
    test_split_name: SplitName = "test"

    def __init__(self, batch_size: int, num_workers: int, drop_last: bool, seed: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if num_workers < 0:
            raise ValueError(f"`num_workers` must be at least 0, got {num_workers}.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.seed = seed
        self._train: Any = None
        self._validation: Any = None
        self._test: Any = None

    def load(self) -> tuple[Any, Any]:
        """Returns the training split and the validation split, scaled with statistics of the training split only."""
        raise NotImplementedError

    def load_test(self) -> Any:
        """Returns the test split, scaled in the same way. Called once, when testing begins."""
        raise NotImplementedError

    def build_dataset(self, split: Any) -> Dataset:
        """Returns the dataset of a split."""
        return split

    def setup(self, stage: str) -> None:
        """Reads the splits of the stage once."""
        if stage == "test" and self.test_split_name == "test":
            if self._test is None:
                self._test = self.load_test()
        elif self._train is None:
            self._train, self._validation = self.load()

    def load_spec(self) -> DataSpec:
        """Reads the training split without a trainer and returns the complete spec."""
        self.prepare_data()
        self.setup("fit")
        return self.spec

    def train_dataloader(self) -> ResumableLoader:
        """Returns the shuffled loader. Its order depends only on the seed."""
        samples: Any = self.build_dataset(self._train)
        self.check_batch_size(batches_per_step=self.batch_size // self._micro_batch_size())
        return self._make_loader("training", samples, shuffle=True, drop_last=self.drop_last)

    def check_batch_size(self, batches_per_step: int) -> None:
        """Raises UserError if the batch of a rank exceeds the training split. Call :meth:`setup` first.

        Args:
            batches_per_step: Batches per optimizer step, over all ranks.
        """
        samples: Any = self.build_dataset(self._train)
        if self.batch_size // batches_per_step > len(samples):
            raise UserError(
                f"data.batch_size={self.batch_size} exceeds the {len(samples)} training samples. Set "
                f"data.batch_size={len(samples) * batches_per_step} or less."
            )

    def val_dataloader(self) -> ResumableLoader:
        """Returns the loader of the validation split, in order."""
        return self._make_loader("validation", self.build_dataset(self._validation))

    def test_dataloader(self) -> ResumableLoader:
        """Returns the loader of the tested split, in order."""
        return self._make_loader(self.test_split_name, self.build_dataset(self.get_split(self.test_split_name)))

    def get_split(self, name: SplitName) -> Any:
        """Returns a split from :meth:`load` or :meth:`load_test`, or None before :meth:`setup` has read it."""
        return {"train": self._train, "validation": self._validation, "test": self._test}[name]

    @property
    def num_validation_samples(self) -> int:
        """Number of validation samples."""
        samples: Any = self.build_dataset(self._validation)
        return len(samples)

    def evenly_spaced_loader(self, max_samples: int, max_batches: int, min_batch_size: int = 1) -> ResumableLoader:
        """Returns a loader of training samples in order, evenly spaced over the split, with equal numbers per rank.

        Args:
            max_samples: Maximum number of samples over all ranks.
            max_batches: Maximum number of samples per rank, in training batches.
            min_batch_size: Minimum batch size. Training batches may be larger.
        """
        dataset: Any = self.build_dataset(self._train)
        world_size = self.trainer.world_size if self.trainer is not None else 1
        num_samples = (
            min(max_samples, len(dataset), max_batches * self._micro_batch_size() * world_size)
            // world_size
            * world_size
        )
        indices = np.linspace(0, len(dataset) - 1, num_samples).astype(int).tolist()
        batch_size = max(self._micro_batch_size(), min_batch_size)
        return self._make_loader("training", Subset(dataset, indices), batch_size=batch_size)

    def _make_loader(
        self, split: str, samples: Any, *, batch_size: int | None = None, **options: Any
    ) -> ResumableLoader:
        """Returns a loader that yields each sample once per epoch, for any number of ranks."""
        world_size = self.trainer.world_size if self.trainer is not None else 1
        if len(samples) < world_size:
            raise UserError(
                f"data: {world_size} ranks cannot share {pluralize(len(samples), f'{split} sample')}. Use fewer ranks "
                "or more data."
            )
        loader = DataLoader(
            samples,
            batch_size=batch_size or self._micro_batch_size(),
            num_workers=self.num_workers,
            collate_fn=self.collate,
            # Each loader draws the seeds of its workers from its own generator. With the global one, dropout would
            # depend on the number of workers: one draw per epoch without workers, one in total with persistent ones.
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            **options,
        )
        return resumable(loader, seed=self.seed, padded=False)

    def _micro_batch_size(self) -> int:
        if self.trainer is None:
            return self.batch_size
        world_size, accumulate_grad_batches = self.trainer.world_size, self.trainer.accumulate_grad_batches
        if self.batch_size % (world_size * accumulate_grad_batches):
            raise UserError(
                f"data.batch_size={self.batch_size} must be divisible by "
                f"{pluralize(world_size, 'rank')} x {pluralize(accumulate_grad_batches, 'accumulated batch')} "
                "(trainer.accumulate_grad_batches), because it is the batch of all ranks together."
            )
        return self.batch_size // (world_size * accumulate_grad_batches)
