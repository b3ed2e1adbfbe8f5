import pytest
import torch

from tests.support.difference import find_differences

NAN = float("nan")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": [1, 2.0, "x", None]}, {"a": [1, 2.0, "x", None]}),
        (torch.tensor([NAN, -0.0]), torch.tensor([NAN, -0.0])),
        (NAN, NAN),
        (torch.zeros(0), torch.zeros(0)),
        (torch.tensor(3), torch.tensor(3)),
    ],
)
def test_equal_bits_are_no_difference(one: object, other: object):
    assert find_differences(one, other) == []


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ({"a": [1, 2]}, {"a": [1, 3]}, "/a/1: 2, 3"),
        ({"a": 1}, {"a": 1, "b": 2}, ": only one has ['b']"),
        ([1, 2], [1], ": only one has ['1']"),
        ((1.0, NAN), (1.0, 2.0), "/1: nan, 2.0"),
        (torch.tensor([0.0]), torch.tensor([-0.0]), ": [0.0], [-0.0]"),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), ": [1.0], [1.0000001192092896]"),
        (torch.tensor([1]), torch.tensor([1], dtype=torch.int32), ": [1], [1]"),
        (torch.tensor([1]), torch.tensor(1), ": [1], 1"),
        (None, torch.tensor(1), ": NoneType, Tensor"),
        (1, 1.0, ": int, float"),
    ],
)
def test_one_bit_type_or_entry_is_a_difference(one: object, other: object, found: str):
    assert find_differences(one, other) == [found]
