import pytest
import torch

from stormproof.checkpoint.finite_check import find_non_finite_tensors

NAN, INF = float("nan"), float("inf")

TENSORS = {
    "zeros": (torch.zeros(3), True),
    "a NaN": (torch.tensor([1.0, NAN]), False),
    "only NaN": (torch.full((2, 2), NAN), False),
    "an infinity": (torch.tensor([1.0, INF]), False),
    "a negative infinity": (torch.tensor([-INF, 1.0]), False),
    "both infinities": (torch.tensor([-INF, INF]), False),
    "the largest number": (torch.tensor([torch.finfo(torch.float32).max]), True),
    "nothing": (torch.zeros(0), True),
    "a scalar": (torch.tensor(NAN), False),
    "whole numbers": (torch.tensor([1, 2]), True),
    "truth values": (torch.tensor([True]), True),
    "half precision": (torch.tensor([1.0, INF], dtype=torch.float16), False),
    "bfloat16": (torch.tensor([1.0, NAN], dtype=torch.bfloat16), False),
    "eight bits": (torch.tensor([1.0, NAN]).to(torch.float8_e5m2), False),
    "eight bits, all fine": (torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), True),
    "double precision": (torch.tensor([1e300], dtype=torch.float64), True),
    "complex": (torch.tensor([1 + 1j]), True),
    "complex with a NaN": (torch.tensor([complex(1, NAN)]), False),
    "every other column": (torch.tensor([[1.0, NAN], [1.0, NAN]])[:, ::2], True),
}


@pytest.mark.parametrize(("tensor", "finite"), TENSORS.values(), ids=TENSORS.keys())
def test_a_weight_is_named_if_and_only_if_it_is_not_finite(tensor: torch.Tensor, finite: bool):
    assert find_non_finite_tensors({"state_dict": {"weight": tensor}}) == ([] if finite else ["state_dict/weight"])


def test_every_place_of_weights_and_of_the_optimizers_is_looked_at():
    bad, good = torch.tensor([NAN]), torch.ones(1)
    checkpoint = {
        "state_dict": {"a": good, "b": bad, "a string": "nan"},
        "current_model_state": {"a": bad, "b": good},  # of a run whose state_dict is an average
        "optimizer_states": [
            {"state": {0: {"step": good, "exp_avg": bad}}, "param_groups": [{"lr": NAN}]},
            {"state": {3: {"momentum_buffer": bad, "flag": True}}},
        ],
        "callbacks": {"EarlyStopping": {"best_score": torch.tensor(INF)}},  # as it begins
    }
    assert find_non_finite_tensors(checkpoint) == [
        "state_dict/b",
        "current_model_state/a",
        "optimizer_states/0/0/exp_avg",
        "optimizer_states/1/3/momentum_buffer",
    ]


def test_a_checkpoint_without_optimizers_has_none_to_look_at():
    assert find_non_finite_tensors({"state_dict": {"weight": torch.ones(1)}}) == []
