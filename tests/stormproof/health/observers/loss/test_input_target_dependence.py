"""Dependence of targets on inputs is detected."""

import pytest
import torch

from stormproof.health.observers.loss.input_target_dependence import DependenceTest


def make_samples(inputs: torch.Tensor, target: torch.Tensor) -> bool | None:
    sample_store = DependenceTest()
    for start in range(0, len(inputs), 32):
        sample_store.add(inputs[start : start + 32], target[start : start + 32])
    return sample_store.is_dependent()


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_targets_are_unrelated(seed: int):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(320, 20, generator=generator)
    label = (inputs[:, 0] > 0).long()
    assert make_samples(inputs, label[torch.randperm(320, generator=generator)]) is False


@pytest.mark.parametrize("seed", range(5))
def test_a_linear_signal_in_one_of_many_entries_is_seen(seed: int):
    inputs = torch.randn(320, 100, generator=torch.Generator().manual_seed(seed))
    assert make_samples(inputs, (inputs[:, 7] > 0).long())
    assert make_samples(inputs, inputs[:, 7])


@pytest.mark.parametrize("seed", range(5))
def test_classes_that_lie_crosswise_are_seen(seed: int):
    inputs = torch.randn(400, 2, generator=torch.Generator().manual_seed(seed))
    assert make_samples(inputs, (inputs[:, 0] * inputs[:, 1] > 0).long())


def test_few_samples_give_no_result():
    assert make_samples(torch.randn(50, 3), torch.arange(50) % 2) is None


def test_one_class_gives_no_result():
    assert make_samples(torch.randn(200, 3), torch.zeros(200).long()) is None
