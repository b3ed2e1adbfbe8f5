import pytest
import torch
from torch import nn

from stormproof.units.unit_axis import output_units, unit_axis, weight_shape


@pytest.mark.parametrize(
    ("layer", "units"),
    [
        (nn.Linear(4, 8), (-1, 8)),
        (nn.Bilinear(2, 3, 8), (-1, 8)),
        (nn.Embedding(5, 8), (-1, 8)),
        (nn.EmbeddingBag(5, 8), (-1, 8)),
        (nn.Conv1d(1, 8, 1), (-2, 8)),
        (nn.Conv2d(1, 8, 1), (-3, 8)),
        (nn.Conv3d(1, 8, 1), (-4, 8)),
        (nn.ConvTranspose2d(1, 8, 1), (-3, 8)),
        (nn.Flatten(), None),
        (nn.BatchNorm1d(8), None),
    ],
)
def test_a_layer_says_which_dimension_counts_its_units(layer: nn.Module, units: tuple[int, int] | None):
    assert output_units(layer) == units


@pytest.mark.parametrize(
    ("shape", "layer", "gated", "axis"),
    [
        ((4, 8), (-1, 8), False, -1),
        ((4, 5, 8), (-1, 8), False, -1),
        ((4, 8, 8), (-1, 8), False, -1),  # as many tokens as units
        ((4, 8, 8), (-2, 8), False, -2),
        ((4, 8, 9, 9), (-3, 8), False, -3),
        ((4, 9, 8), (-2, 8), False, -1),  # channels that became the last dimension
        ((4, 8, 9), (-1, 8), False, -2),  # and those that were it
        ((4, 4, 8), (-2, 8), False, -1),  # half as many positions as channels
        ((4, 8, 4), (-1, 8), True, -1),  # a gate, and as many tokens as it had inputs
        ((4, 4, 9), (-2, 8), True, -2),
        ((4, 72), (-2, 8), False, -1),  # flattened: each position is a unit
        ((4, 3, 9, 9), (-1, 8), False, None),
        ((4, 5, 4, 8), (-1, 32), False, None),
        ((4, 3, 9, 9), (-3, 12), False, -3),
        ((4, 3, 9, 9), None, False, -3),
        ((4, 3, 9), None, False, -1),
        ((4, 3), None, False, -1),
        ((4, 3, 2, 9, 9), None, False, -4),
    ],
)
def test_units_are_where_the_layer_had_them_or_where_as_many_are(
    shape: tuple[int, ...], layer: tuple[int, int] | None, gated: bool, axis: int
):
    assert unit_axis(torch.Size(shape), layer, gated=gated) == axis


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_sequences_have_length_0():
    nested = torch.nested.nested_tensor([torch.zeros(2, 5), torch.zeros(3, 5)])
    assert weight_shape(nested) == (2, 0, 5)
