import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stormproof.units.running_min_max import RunningExtremes, compute_extremes

shapes = st.lists(st.integers(1, 4), min_size=2, max_size=5)


@settings(deadline=None)
@given(shape=shapes, data=st.data(), strided=st.booleans())
def test_they_are_the_smallest_and_the_largest_of_each_unit(shape: list[int], data: st.DataObject, strided: bool):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    outputs = torch.randint(-3, 3, shape, generator=torch.Generator().manual_seed(sum(shape))).float()
    if strided:
        outputs = outputs.transpose(0, -1)
    units = [sum(unit.tolist(), []) for unit in outputs.movedim(axis, 0).unsqueeze(1).flatten(1).unsqueeze(1)]  # noqa: RUF017
    low, high = compute_extremes(outputs, axis)
    assert low.tolist() == [min(unit) for unit in units]
    assert high.tolist() == [max(unit) for unit in units]


@settings(deadline=None)
@given(outputs=st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=8), data=st.data())
def test_batches_in_any_order_and_twice_make_the_same_pass(outputs: list[list[int]], data: st.DataObject):
    rows = torch.tensor(outputs, dtype=torch.float32)
    order = data.draw(st.permutations(range(len(rows))))
    batches = [RunningExtremes(*compute_extremes(rows[index : index + 1], 1), 1) for index in [*order, *order[:2]]]
    whole = batches[0]
    for batch in batches[1:]:
        whole = whole.merge(batch)
    assert whole.is_dead().tolist() == [len(set(unit)) == 1 for unit in zip(*outputs, strict=True)]
    assert whole.inputs == len(batches)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_smallest_difference_that_there_is_is_life(dtype: torch.dtype):
    one_tensor = torch.ones(1, dtype=dtype)
    next_to_it = one_tensor + torch.finfo(dtype).eps
    outputs = torch.stack([torch.cat([one_tensor, one_tensor]), torch.cat([one_tensor, next_to_it])])
    assert RunningExtremes(*compute_extremes(outputs, 1), 2).is_dead().tolist() == [True, False]


def test_zero_is_zero_with_either_sign():
    assert RunningExtremes(*compute_extremes(torch.tensor([[0.0], [-0.0]]), 1), 2).is_dead().tolist() == [True]


@pytest.mark.parametrize("first", [True, False])
def test_a_unit_that_was_not_a_number_once_is_not_dead(first: bool):
    nan, zero = (RunningExtremes(*compute_extremes(torch.tensor([[value]]), 1), 1) for value in (math.nan, 0.0))
    assert (nan.merge(zero) if first else zero.merge(nan)).is_dead().tolist() == [False]


def test_infinity_is_a_value():
    assert RunningExtremes(*compute_extremes(torch.full((3, 1), math.inf), 1), 3).is_dead().tolist() == [True]


def test_types_may_be_mixed():
    """As after a resume, which brings them in double precision."""
    single, double = (
        RunningExtremes(*compute_extremes(torch.tensor([[0.1]], dtype=dtype), 1), 1) for dtype in (None, torch.float64)
    )
    resumed = RunningExtremes(single.low.double(), single.high.double(), 1)
    assert resumed.merge(single).is_dead().tolist() == [True]
    assert double.merge(single).is_dead().tolist() == [False]
