"""Data that fits in memory: whole tensors, batches cut from them without a Python loop over samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from stormproof import resumable
from stormproof.resumable_loader import ResumableLoader
from stormproof_train.data.spec import DataSpec, with_targets
from stormproof_train.errors import UserError

Split = tuple[torch.Tensor, torch.Tensor]
"""(inputs (N, …), targets (N,) class indices or (N, outputs))."""


class Tensors(Dataset):
    """Pairs of inputs and targets, fetched a batch at a time.

    torch's loader hands all indices of a batch to ``__getitems__`` where there is one; with one indexing operation
    for the batch instead of one a sample, and nothing left to collate.
    """

    draws_random_numbers = False

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Split:
        """One sample: (input, target)."""
        return self.inputs[index], self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> Split:
        """A whole batch: (inputs, targets)."""
        chosen = torch.as_tensor(indices)
        return self.inputs[chosen], self.targets[chosen]


def _as_is(batch: Any) -> Any:
    return batch


class InMemory(pl.LightningDataModule):
    """A data module over whole tensors; a data set says in :meth:`load` and :meth:`load_test` what they are.

    Args:
        batch_size: samples of one optimizer step, over all ranks and accumulated batches, at least 1.
        num_workers: loader processes of each rank, at least 0; with whole tensors in memory 0 is the fastest.
        drop_last: leaves an epoch's last, smaller training batch out.
        seed: fixes the split and the order of the training samples.

    Raises:
        ValueError: if a number is out of its range.
    """

    spec: DataSpec

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
        self._train: Split | None = None
        self._validation: Split | None = None
        self._test: Split | None = None

    def load(self) -> tuple[Split, Split]:
        """The training and the validation split, scaled by statistics of the training split alone."""
        raise NotImplementedError

    def load_test(self) -> Split:
        """The test split, scaled in the same way; read once, when testing begins."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Reads what the stage needs, once."""
        if stage == "test":
            if self._test is None:
                self._test = self.load_test()
        elif self._train is None:
            self._train, self._validation = self.load()
            self.spec = with_targets(self.spec, self._train[1])

    def read(self) -> DataSpec:
        """Reads the training split, without a trainer; the spec then tells of its targets too."""
        self.prepare_data()
        self.setup("fit")
        return self.spec

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, in an order that the seed alone fixes: not the network, not the number of workers."""
        assert self._train is not None
        size = self._micro_batch_size()
        rows = len(self._train[0])
        if size > rows:
            raise UserError(f"data.batch_size={self.batch_size} is more than the {rows} training samples")
        loader = self._loader(Tensors(*self._train), size, shuffle=True, drop_last=self.drop_last)
        return resumable(loader, seed=self.seed)

    def val_dataloader(self) -> DataLoader:
        """The validation split, in order."""
        assert self._validation is not None
        return self._loader(Tensors(*self._validation), self._micro_batch_size())

    def test_dataloader(self) -> DataLoader:
        """The test split, in order."""
        assert self._test is not None
        return self._loader(Tensors(*self._test), self._micro_batch_size())

    def _loader(self, data: Tensors, batch_size: int, **options: Any) -> DataLoader:
        return DataLoader(
            data,
            batch_size=batch_size,
            num_workers=self.num_workers,
            collate_fn=_as_is,
            # Each loader draws its workers' seeds from a generator of its own: from the global one it would take a
            # number an epoch without workers and one in all with persistent ones, and dropout would differ.
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            **options,
        )

    def _micro_batch_size(self) -> int:
        if self.trainer is None:
            return self.batch_size
        ranks, accumulated = self.trainer.world_size, self.trainer.accumulate_grad_batches
        if self.batch_size % (ranks * accumulated):
            raise UserError(
                f"data.batch_size={self.batch_size} is the batch of the whole job: {ranks} ranks x {accumulated} "
                "accumulated batches (trainer.accumulate_grad_batches) cannot share it equally"
            )
        return self.batch_size // (ranks * accumulated)
