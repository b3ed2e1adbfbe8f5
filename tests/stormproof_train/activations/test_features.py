from collections.abc import Callable

import pytest
import torch
from torch import nn

from stormproof_train.activations import Maxout, activation_factory, crelu, infer_feature_counts
from stormproof_train.errors import UserError


def test_maxout_takes_its_pieces_for_each_unit():
    assert all(infer_feature_counts(lambda n=pieces: Maxout(n), 10) == (10 * pieces, 10) for pieces in range(2, 17))


def test_parameters_for_a_number_of_features_are_for_that_number():
    assert infer_feature_counts(lambda: nn.PReLU(12), 12, spatial_dims=2) == (12, 12)
    with pytest.raises(
        UserError, match="does not accept 13 features, nor a multiple or fraction of them up to a factor of 16: "
    ):
        infer_feature_counts(lambda: nn.PReLU(12), 13)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x: x.sum(), r"returns \(\) for input \(2, 8\)"),
        (lambda x: x.flatten(), r"returns \(16,\) for input \(2, 8\)"),
        (lambda x: x[:, :0], r"returns \(2, 0\) for input \(2, 8\)"),
        (
            torch.sort,
            r"returns a tuple for input \(2, 8\), expected \(batch, features, …\)",
        ),
        (lambda x: x.unflatten(1, (-1, 17)).amax(2), "does not accept 8 features, nor a multiple or fraction of them"),
        (lambda x: x @ torch.zeros(3, 3), "does not accept 8 features, .*: mat1 and mat2 shapes cannot be multiplied"),
    ],
    ids=["a number", "no batch", "nothing", "a tuple", "more than can be tried", "another width"],
)
def test_what_gives_no_features_is_told(function: Callable[[torch.Tensor], torch.Tensor], told: str):
    with pytest.raises(UserError, match=told) as excinfo:
        infer_feature_counts(activation_factory(lambda: function), 8)
    assert "\n" not in str(excinfo.value)


def test_positions_must_stay():
    with pytest.raises(UserError, match=r"returns \(2, 8, 1\) for input \(2, 8, 2\)"):
        infer_feature_counts(activation_factory(lambda: lambda x: x[:, :, :1]), 8, spatial_dims=1)


def test_trying_out_draws_nothing_from_the_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    infer_feature_counts(lambda: nn.Sequential(nn.Linear(8, 8), nn.RReLU()), 8)
    infer_feature_counts(activation_factory(lambda: crelu), 9)
    assert torch.equal(torch.rand(3), expected)
