"""The targets of training, mixed with what a trained network says."""

from pathlib import Path

import pytest
import torch
from torch import nn

from stormproof_train.compression.teacher import Teacher, supports_distillation
from stormproof_train.errors import UserError
from stormproof_train.losses import BCE, MSE, CrossEntropy, GaussianNLL, Poisson


@pytest.fixture
def weights(tmp_path: Path) -> str:
    network = nn.Linear(4, 3)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "target_scale": {"shift": 10.0, "scale": 2.0}}, tmp_path / "teacher.ckpt")
    return str(tmp_path / "teacher.ckpt")


def make_teacher(weights: str) -> nn.Linear:
    network = nn.Linear(4, 3)
    state = torch.load(weights, weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    return network


def test_classes_become_probabilities_between_the_label_and_the_teachers(weights: str):
    inputs, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    outputs, mixed = Teacher(nn.Linear(4, 3), weights, CrossEntropy(), 3, share=0.25)(inputs, target)
    teacher_probabilities = make_teacher(weights)(inputs).softmax(dim=1)
    assert outputs is inputs
    torch.testing.assert_close(mixed, 0.75 * nn.functional.one_hot(target, 3) + 0.25 * teacher_probabilities)


def test_probabilities_of_an_augmentation_before_it_are_mixed_too(weights: str):
    inputs, target = torch.randn(2, 4), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.1, 0.9]])
    _, mixed = Teacher(nn.Linear(4, 3), weights, CrossEntropy(), 3, share=0.5)(inputs, target)
    torch.testing.assert_close(mixed, (target + make_teacher(weights)(inputs).softmax(dim=1)) / 2)


def test_cross_entropy_of_the_mixture_is_distillation_at_a_temperature_of_one(weights: str):
    inputs, target, logits = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6, 3)
    _, mixed = Teacher(nn.Linear(4, 3), weights, CrossEntropy(), 3, share=0.7)(inputs, target)
    teacher_probabilities = make_teacher(weights)(inputs).softmax(dim=1)
    distilled = -(teacher_probabilities * logits.log_softmax(dim=1)).sum(dim=1).mean()
    expected = 0.3 * nn.functional.cross_entropy(logits, target) + 0.7 * distilled
    torch.testing.assert_close(nn.functional.cross_entropy(logits, mixed), expected)


def test_values_are_mixed_in_the_targets_own_unit(weights: str):
    inputs, target = torch.randn(5, 4), torch.randn(5, 3)
    _, mixed = Teacher(nn.Linear(4, 3), weights, MSE(), None, share=1.0)(inputs, target)
    torch.testing.assert_close(mixed, make_teacher(weights)(inputs) * 2 + 10)


def test_a_column_of_targets_fits_one_output(tmp_path: Path):
    torch.save(nn.Linear(4, 1).state_dict(), tmp_path / "weights.ckpt")
    _, mixed = Teacher(nn.Linear(4, 1), str(tmp_path / "weights.ckpt"), MSE(), None)(torch.randn(5, 4), torch.randn(5))
    assert mixed.shape == (5, 1)


def test_the_teacher_is_asked_in_evaluation_and_learns_nothing(tmp_path: Path):
    network = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    torch.save(network.state_dict(), tmp_path / "weights.ckpt")
    teacher = Teacher(network, str(tmp_path / "weights.ckpt"), CrossEntropy(), 3)
    inputs, target = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
    first, second = teacher(inputs, target)[1], teacher(inputs, target)[1]
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert network[2].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("loss", "classes", "can"),
    [(CrossEntropy(), 3, True), (BCE(), 3, False), (MSE(), None, True), (Poisson(), None, True)],
)
def test_who_can_teach(loss: object, classes: int | None, can: bool):
    assert supports_distillation(loss, classes) is can


def test_a_loss_that_takes_no_prediction_for_a_target_is_a_sentence(weights: str):
    with pytest.raises(UserError, match="GaussianNLL does not support the outputs of a teacher as targets"):
        Teacher(nn.Linear(4, 3), weights, GaussianNLL(), None)


def test_another_networks_weights_are_a_sentence(weights: str):
    with pytest.raises(UserError, match=r"teacher\.ckpt do not fit the network of the teacher"):
        Teacher(nn.Linear(5, 3), weights, CrossEntropy(), 3)


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_the_share_is_above_0_and_at_most_1(weights: str, share: float):
    with pytest.raises(ValueError, match="`share` must be in"):
        Teacher(nn.Linear(4, 3), weights, CrossEntropy(), 3, share=share)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_of_another_precision_are_brought_to_the_teachers(weights: str, dtype: torch.dtype):
    inputs = torch.randn(5, 4).to(dtype)
    outputs, mixed = Teacher(nn.Linear(4, 3), weights, CrossEntropy(), 3)(inputs, torch.tensor([0, 1, 2, 0, 1]))
    assert outputs.dtype is dtype
    assert mixed.dtype is torch.float32
