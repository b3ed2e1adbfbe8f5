import pytest
import torch
from torch import nn

from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.data.spec import DataSpec
from stormproof_train.losses import GaussianNLL
from tests.support.task_fits import make_task

CLASSES, VALUES = DataSpec((4,), 3, 3), DataSpec((4,), None, 2, target_mean=50.0, target_std=10.0)
INPUTS = torch.linspace(-1, 1, 20).reshape(5, 4)


def test_probabilities_of_the_classes_add_up_to_one():
    task = make_task(CLASSES)
    deployed = DeployedModel.from_task(task)
    assert deployed.kind == "probabilities"
    assert torch.equal(deployed(INPUTS), task.network(INPUTS).softmax(dim=1))


def test_scores_of_a_loss_without_a_softmax_are_the_outputs():
    task = make_task(CLASSES, loss=nn.MultiMarginLoss())
    assert DeployedModel.from_task(task).kind == "scores"
    assert torch.equal(DeployedModel.from_task(task)(INPUTS), task.network(INPUTS))


def test_values_are_in_the_targets_own_unit():
    task = make_task(VALUES)
    assert DeployedModel.from_task(task).kind == "values"
    assert torch.equal(DeployedModel.from_task(task)(INPUTS), task.network(INPUTS) * 10 + 50)
    assert torch.equal(DeployedModel.from_task(task)(INPUTS), task(INPUTS))


def test_values_are_what_the_loss_reads_off_the_outputs():
    task = make_task(VALUES, loss=GaussianNLL(), network=nn.Linear(4, 4))
    assert torch.equal(DeployedModel.from_task(task)(INPUTS), task(INPUTS))
    assert DeployedModel.from_task(task)(INPUTS).shape == (5, 2)


@pytest.mark.slow
def test_the_scale_is_that_of_the_checkpoint():
    task = make_task(VALUES)
    task.on_load_checkpoint({"target_scale": {"shift": 1.0, "scale": 2.0}})
    assert torch.equal(DeployedModel.from_task(task)(INPUTS), task.network(INPUTS) * 2 + 1)


@pytest.mark.parametrize(("dtype", "wanted"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_predictions_have_float32_at_least(dtype: torch.dtype, wanted: torch.dtype):
    assert DeployedModel(nn.Identity(), "probabilities")(INPUTS.to(dtype)).dtype == wanted
