"""Hashes of tensors and values."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stormproof.replay.recorder.hashing import hash_tensors, hash_value


def test_hash_is_the_same_in_all_processes() -> None:
    assert hash_tensors([torch.arange(4), None]) == "6901a240564ca67d"
    assert hash_value({"b": [1, "x"], "a": None}) == "8ca6892b970e12d6"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(6.0).bfloat16(),
        torch.arange(6.0).to_sparse(),
        torch.zeros(0),
        torch.nn.Parameter(torch.arange(3.0)),
    ],
    ids=["transposed", "bfloat16", "coo", "empty", "parameter"],
)
def test_tensors_of_any_layout_have_a_hash(tensor: torch.Tensor) -> None:
    assert hash_tensors([tensor]) == hash_tensors([tensor.detach().clone()])
    if tensor.numel():
        assert hash_tensors([tensor]) != hash_tensors([tensor.detach() + tensor.detach()])


def test_transposed_tensor_is_read_in_logical_order() -> None:
    tensor = torch.arange(6.0).view(2, 3)

    assert hash_tensors([tensor.t()]) == hash_tensors([tensor.t().contiguous()]) != hash_tensors([tensor])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, [2.0]), [1, (2,)]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1.0}),
        (np.float64(0.1), 0.1),
        (torch.tensor(3), 3),
        ({1, 2}, {2, 1}),
    ],
)
def test_values_that_formats_exchange_are_equal(first: Any, second: Any) -> None:
    assert hash_value(first) == hash_value(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 2], [2, 1]),
        ([[1], [2]], [[1, 2]]),
        ("1", 1),
        (True, 1),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (np.zeros((2, 1)), np.zeros((1, 2))),
        (np.array([{"a": 1}]), np.array([{"a": 2}])),
        (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    ],
)
def test_different_values_have_different_hashes(first: Any, second: Any) -> None:
    assert hash_value(first) != hash_value(second)
