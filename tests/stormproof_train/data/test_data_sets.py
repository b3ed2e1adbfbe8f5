from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits

from stormproof_train.data.diabetes import Diabetes
from stormproof_train.data.digits import Digits
from stormproof_train.data.fashion_mnist import FashionMNIST
from stormproof_train.data.in_memory import InMemoryDataModule
from stormproof_train.data.mnist1d import MNIST1D
from stormproof_train.data.spec import DataSpec
from stormproof_train.data.splits import split_three_ways
from tests.support.split_arrays import load_splits, sort_rows, to_sorted_rows


def test_digits_are_scaled_by_the_training_split_alone():
    pixels, labels = load_digits(return_X_y=True)
    rows = split_three_ways(len(pixels), 0.2, 0.1, 3, labels)
    mean, std = pixels[rows[0]].mean(), pixels[rows[0]].std(ddof=1)
    data = Digits(validation_fraction=0.2, test_fraction=0.1, seed=3)
    for split, chosen in zip(load_splits(data).values(), rows, strict=True):
        assert split[0].shape == (len(chosen), 1, 8, 8)
        assert (split[0].dtype, split[1].dtype) == (torch.float32, torch.int64)
        np.testing.assert_allclose(
            sort_rows(split), to_sorted_rows((pixels[chosen] - mean) / std, labels[chosen]), rtol=1e-4, atol=1e-5
        )


def test_digits_are_stratified():
    counts = {name: Counter(split[1].tolist()) for name, split in load_splits(Digits()).items()}
    total = Counter(load_digits().target.tolist())
    for name, share in {"train": 0.7, "validation": 0.15, "test": 0.15}.items():
        for digit in range(10):
            assert abs(counts[name][digit] - share * total[digit]) < 1.5


def test_reading_a_data_set_counts_the_classes_of_its_training_split():
    data = Digits(seed=3)
    assert data.spec.class_counts is None
    _, labels = load_digits(return_X_y=True)
    rows = split_three_ways(len(labels), 0.15, 0.15, 3, labels)
    assert data.load_spec().class_counts == tuple(np.bincount(labels[rows[0]]).tolist())
    assert data.load_spec() is data.spec
    assert Digits.spec.class_counts is None


def test_diabetes_is_scaled_by_the_training_split_alone_and_its_target_not_at_all():
    features, target = load_diabetes(return_X_y=True, scaled=False)
    rows = split_three_ways(len(target), 0.2, 0.2, 4)
    train = features[rows[0]]
    data = Diabetes(seed=4)
    for split, chosen in zip(load_splits(data).values(), rows, strict=True):
        scaled = (features[chosen] - train.mean(axis=0)) / train.std(axis=0, ddof=1)
        assert split[1].shape == (len(chosen), 1)
        np.testing.assert_allclose(split[1].sort(dim=0).values[:, 0].numpy(), np.sort(target[chosen]), rtol=1e-6)
        np.testing.assert_allclose(np.sort(split[0].numpy(), axis=0), np.sort(scaled, axis=0), rtol=1e-3, atol=1e-4)
    assert data.spec.target_mean == pytest.approx(target[rows[0]].mean(), rel=1e-6)
    assert data.spec.target_min == target[rows[0]].min()
    assert data.spec.target_std == pytest.approx(target[rows[0]].std(ddof=1), rel=1e-5)


@pytest.mark.parametrize(
    ("data", "spec"),
    [
        (Digits, DataSpec((1, 8, 8), 10, 10)),
        (Diabetes, DataSpec((10,), None, 1)),
        (FashionMNIST, DataSpec((1, 28, 28), 10, 10)),
        (MNIST1D, DataSpec((1, 40), 10, 10)),
    ],
)
def test_a_data_set_knows_its_shapes_before_it_reads_a_file(data: type[InMemoryDataModule], spec: DataSpec):
    assert data.spec == spec
    assert spec.task == ("regression" if data is Diabetes else "classification")


def test_two_diabetes_sets_keep_their_own_scale():
    first, second = Diabetes(seed=1), Diabetes(seed=2)
    assert first.spec.target_mean != second.spec.target_mean
    assert Diabetes.spec.target_mean == 0.0
