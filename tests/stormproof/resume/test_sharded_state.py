"""A state that does not fit the run is refused before any tensor is changed."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from stormproof.errors import NotResumableError
from stormproof.resume import sharded_state


def _sgd(*sizes: int) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1)) for _ in range(size)]} for size in sizes]
    return torch.optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize(
    ("saved", "problem"),
    [
        (["weight"], "does not contain bias, which the module has"),
        (["bias", "scale", "weight"], "contains scale, which the module does not have"),
    ],
)
def test_other_names_are_refused(saved: list[str], problem: str):
    with pytest.raises(NotResumableError, match=f"The checkpoint {problem}. Use the same model, or set strict_loading"):
        sharded_state._check_names(["weight", "bias"], saved)
    sharded_state._check_names(["weight", "bias"], ["bias", "weight"])


def test_other_parameter_groups_are_refused():
    saved_groups = [{"params": ["a", "b"]}]
    sharded_state._check_groups(_sgd(2), saved_groups)
    with pytest.raises(NotResumableError, match=r"SGD has parameter groups of sizes \[2, 1\], but .* has \[2\]"):
        sharded_state._check_groups(_sgd(2, 1), saved_groups)


@pytest.mark.parametrize(
    ("count", "saved_count", "is_refused"), [(1, 1, False), (0, 2, False), (1, 2, True), (2, 1, True)]
)
def test_another_number_of_optimizers_is_refused_unless_the_trainer_only_validates(
    count: int, saved_count: int, is_refused: bool
):
    trainer = cast("Any", SimpleNamespace(optimizers=[_sgd(1) for _ in range(count)]))
    if not is_refused:
        sharded_state._check_optimizer_count(trainer, saved_count)
        return
    with pytest.raises(NotResumableError, match=f"returns {count} optimizers, but the checkpoint has {saved_count}"):
        sharded_state._check_optimizer_count(trainer, saved_count)


def test_parameters_have_the_names_that_torch_saves():
    module = nn.Sequential(checkpoint_wrapper(nn.Linear(1, 1)), nn.Linear(1, 1))
    outside = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([*module.parameters(), outside])
    assert [*sharded_state.parameter_names(module, optimizer).values()] == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_a_saved_state_of_an_unknown_parameter_is_refused():
    module = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(NotResumableError, match="contains the state of scale, which SGD does not optimize"):
        sharded_state._initialize(module, optimizer, ["scale", "weight"])


def test_states_are_created_without_changing_parameters_gradients_and_rates():
    module = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    before = [parameter.clone() for parameter in module.parameters()]
    module.weight.grad = torch.ones(1, 2)
    states = sharded_state._initialize(module, optimizer, ["weight"])
    assert states["weight"]["exp_avg"].shape == (1, 2)
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    assert torch.equal(cast("torch.Tensor", module.weight.grad), torch.ones(1, 2))
    assert module.bias.grad is None
    assert optimizer.param_groups[0]["lr"] == 0.1
