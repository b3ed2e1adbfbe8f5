"""Losses are kept, read from a device, and checked for spikes."""

import math

import pytest
import torch

from stormproof.health.observers.loss.loss_history import LossHistory


@pytest.fixture
def spikes() -> list[int]:
    return []


@pytest.fixture
def history(spikes: list[int]) -> LossHistory:
    return LossHistory(lambda: spikes.append(1))


def add(history: LossHistory, losses: list[float]) -> None:
    for step, loss in enumerate(losses):
        history.add(step, loss)


def test_losses_on_a_device_are_read_together(history: LossHistory):
    for step, loss in enumerate((1.0, math.nan, math.inf)):
        history.add_on_device(step, torch.tensor(loss))
    assert history.observe().recent == ()
    assert history.read_device(factor=2.0) == 1
    assert history.observe().recent[0] == (0, 2.0)
    assert len(history.observe().recent) == 3
    assert history.read_device(factor=2.0) is None


def test_a_lasting_spike_is_reported_once_and_again_after_it_ended(history: LossHistory, spikes: list[int]):
    usual = [1.0, 1.1, 0.9, 1.0] * 10
    add(history, [*usual, 100.0, 100.0, 100.0])
    assert len(spikes) == 1
    add(history, [1.0, math.nan])
    assert len(spikes) == 2


def test_spikes_of_batches_with_several_losses_are_not_reported(history: LossHistory, spikes: list[int]):
    history.have_one_backward = False
    add(history, [*[1.0, 1.1] * 20, 100.0])
    assert spikes == []


def test_restored_losses_are_the_baseline_of_later_ones_and_are_not_reported(spikes: list[int]):
    previous = LossHistory(lambda: None)
    add(previous, [*[1.0, 1.1] * 20, 100.0, 1.0])
    history = LossHistory(lambda: spikes.append(1))
    history.load_state_dict(previous.state_dict())
    assert (history.observe(), spikes) == (previous.observe(), [])
    history.add(50, 100.0)
    assert spikes == [1]


def test_the_best_and_the_last_validation_passes_are_kept(history: LossHistory):
    history.add(0, 4.0)
    history.add(1, 2.0)
    history.add_validation(2, [], None, None)  # without a loss or a metric
    for step, loss in enumerate((0.5, *[1.0] * 12), start=3):
        history.add_validation(step, [loss, loss], None, 8)
    passes = history.observe().validations
    assert [entry.step for entry in passes] == [3, *range(8, 16)]
    assert passes[0].training_loss is None
    history.add_validation(20, [], 0.7, None)
    assert (history.observe().validations[-1].loss, history.observe().validations[-1].losses) == (0.7, ())
