"""What artifacts are calibrated and compared on."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from stormproof_train.compression.samples import load_samples
from stormproof_train.data.digits import Digits


class SortedData(pl.LightningDataModule):
    """Validation and test in the order of their classes, as a folder of images has them."""

    def _loader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.arange(100.0)[:, None], torch.arange(100) // 20), batch_size=16)

    def train_dataloader(self) -> DataLoader:
        return self._loader()

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.parametrize("split", ["validation", "test"])
def test_of_more_samples_than_wanted_they_are_evenly_picked(split: str):
    samples = load_samples(SortedData(), split, 0, 40)
    assert np.bincount(samples.target).tolist() == [8, 8, 8, 8, 8]
    assert samples.inputs[[0, -1], 0].tolist() == [0, 99]
    assert samples.available == 100


def test_all_are_taken_where_there_are_no_more():
    samples = load_samples(SortedData(), "validation", 0, 1000)
    assert samples.inputs[:, 0].tolist() == list(range(100))


def test_training_samples_are_those_of_the_training_split_without_augmentation():
    data = Digits()
    samples = load_samples(data, "train", 0, 50)
    training = {tuple(sample.flatten().tolist()) for sample in data.load()[0][0]}
    assert len(samples) == 50
    assert len(load_samples(data, "train", 0, 512)) == 512  # more than there are to validate
    assert all(tuple(sample.flatten().tolist()) in training for sample in samples.inputs)


def test_values_have_a_column_for_each_output():
    class Values(SortedData):
        def val_dataloader(self) -> DataLoader:
            return DataLoader(TensorDataset(torch.randn(6, 2), torch.randn(6)))

    assert load_samples(Values(), "validation", 1, 10).target.shape == (6, 1)


def test_integers_stay_integers():
    class Tokens(SortedData):
        def val_dataloader(self) -> DataLoader:
            return DataLoader(TensorDataset(torch.arange(6)[:, None], torch.zeros(6, dtype=torch.long)))

    assert load_samples(Tokens(), "validation", 0, 10).inputs.dtype == np.int64
