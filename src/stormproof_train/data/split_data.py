"""Data in three splits, each behind a loader; whatever a data set is, its batches are made here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from stormproof import resumable
from stormproof.resumable_loader import ResumableLoader
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from stormproof_train.pluralize import pluralize

SplitName = Literal["train", "validation", "test"]


class SplitDataModule(pl.LightningDataModule):
    """A data module that says in :meth:`load` and :meth:`load_test` what its splits are.

    Args:
        batch_size: samples of one optimizer step, over all ranks and accumulated batches, at least 1.
        num_workers: loader processes of each rank, at least 0.
        drop_last: leaves an epoch's last, smaller training batch out.
        seed: fixes the split and the order of the training samples.

    Attributes:
        collate: makes a batch of a list of samples; None for torch's own way.
        test_split_name: the split that is tested, in order.

    Raises:
        ValueError: if a number is out of its range.
    """

    spec: DataSpec
    collate: Callable[[Any], Any] | None = None
    test_split_name: SplitName = "test"

    def __init__(self, batch_size: int, num_workers: int, drop_last: bool, seed: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; a batch needs at least 1 sample")
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}; it must be at least 0")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.seed = seed
        self._train: Any = None
        self._validation: Any = None
        self._test: Any = None

    def load(self) -> tuple[Any, Any]:
        """The training and the validation split, scaled by statistics of the training split alone."""
        raise NotImplementedError

    def load_test(self) -> Any:
        """The test split, scaled in the same way; read once, when testing begins."""
        raise NotImplementedError

    def build_dataset(self, split: Any) -> Dataset:
        """What a loader fetches the samples of a split from."""
        return split

    def setup(self, stage: str) -> None:
        """Reads what the stage needs, once."""
        if stage == "test" and self.test_split_name == "test":
            if self._test is None:
                self._test = self.load_test()
        elif self._train is None:
            self._train, self._validation = self.load()

    def load_spec(self) -> DataSpec:
        """Reads the training split, without a trainer; then the spec is complete."""
        self.prepare_data()
        self.setup("fit")
        return self.spec

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, in an order that the seed alone fixes: not the network, not the number of workers."""
        samples: Any = self.build_dataset(self._train)
        self.check_batch_size(batches_per_step=self.batch_size // self._micro_batch_size())
        return self._make_loader("training", samples, shuffle=True, drop_last=self.drop_last)

    def check_batch_size(self, batches_per_step: int) -> None:
        """Raises UserError if the batch of a rank exceeds the training split. Call :meth:`setup` first.

        Args:
            batches_per_step: Batches that make an optimizer step, over all ranks.
        """
        samples: Any = self.build_dataset(self._train)
        if self.batch_size // batches_per_step > len(samples):
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {len(samples)} training samples: set "
                f"data.batch_size={len(samples) * batches_per_step} or less"
            )

    def val_dataloader(self) -> ResumableLoader:
        """The validation split, in order."""
        return self._make_loader("validation", self.build_dataset(self._validation))

    def test_dataloader(self) -> ResumableLoader:
        """The split that is tested, in order."""
        return self._make_loader(self.test_split_name, self.build_dataset(self.get_split(self.test_split_name)))

    def get_split(self, name: SplitName) -> Any:
        """Returns a split as :meth:`load` or :meth:`load_test` gave it, or None before :meth:`setup` has read it."""
        return {"train": self._train, "validation": self._validation, "test": self._test}[name]

    @property
    def num_validation_samples(self) -> int:
        """How many samples there are to validate."""
        samples: Any = self.build_dataset(self._validation)
        return len(samples)

    def evenly_spaced_loader(self, max_samples: int, max_batches: int) -> ResumableLoader:
        """Training samples in order, spread evenly over the split: of all ranks equally many.

        Args:
            max_samples: samples of all ranks.
            max_batches: of each rank, at most.
        """
        dataset: Any = self.build_dataset(self._train)
        world_size = self.trainer.world_size if self.trainer is not None else 1
        num_samples = (
            min(max_samples, len(dataset), max_batches * self._micro_batch_size() * world_size)
            // world_size
            * world_size
        )
        indices = np.linspace(0, len(dataset) - 1, num_samples).astype(int).tolist()
        return self._make_loader("training", Subset(dataset, indices))

    def _make_loader(self, split: str, samples: Any, **options: Any) -> ResumableLoader:
        """Each sample once a pass, however many ranks share it."""
        world_size = self.trainer.world_size if self.trainer is not None else 1
        if len(samples) < world_size:
            raise UserError(
                f"data: {world_size} ranks cannot share {pluralize(len(samples), f'{split} sample')}: take fewer, or "
                f"more data"
            )
        loader = DataLoader(
            samples,
            batch_size=self._micro_batch_size(),
            num_workers=self.num_workers,
            collate_fn=self.collate,
            # Each loader draws its workers' seeds from a generator of its own: from the global one it would take a
            # number an epoch without workers and one in all with persistent ones, and dropout would differ.
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
                f"data.batch_size={self.batch_size} is the batch of the whole job: {pluralize(world_size, 'rank')} x "
                f"{pluralize(accumulate_grad_batches, 'accumulated batch')} (trainer.accumulate_grad_batches) cannot "
                f"share it equally"
            )
        return self.batch_size // (world_size * accumulate_grad_batches)
