import pytest
import torch
from torch import nn

from stormproof_train.compression.structure.pruning import UnitPruner
from stormproof_train.compression.structure.shapes import apply_shapes, changed_shapes
from tests.stormproof_train.compression.small_networks import MODELS, make_samples


def test_only_what_became_smaller_has_a_shape():
    network = MODELS["transformer"](nn.ReLU)
    pruning = UnitPruner(network, make_samples(), block=1)
    pruned = pruning.prune_to(pruning.min_macs)
    shapes = changed_shapes(pruned, network)
    assert shapes["position"] == list(pruned.position.shape) != list(network.position.shape)
    assert shapes["blocks.0.1.residual.1.wide"] == list(pruned.get_submodule("blocks.0.1.residual.1.wide").weight.shape)
    assert changed_shapes(network, network) == {}


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(6, 4), [3, 2], "Linear(in_features=2, out_features=3, bias=True)"),
        (nn.Conv1d(6, 4, 3), [3, 5, 3], "Conv1d(5, 3, kernel_size=(3,), stride=(1,))"),
        (nn.Conv3d(6, 4, 3), [3, 6, 3, 3, 3], "Conv3d(6, 3, kernel_size=(3, 3, 3), stride=(1, 1, 1))"),
        (nn.Conv2d(6, 4, 3, groups=2), [2, 2, 3, 3], "Conv2d(4, 2, kernel_size=(3, 3), stride=(1, 1), groups=2)"),
        (nn.Conv2d(6, 6, 3, groups=6), [4, 1, 3, 3], "Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), groups=4)"),
        (nn.LayerNorm(6), [4], "LayerNorm((4,), eps=1e-05, elementwise_affine=True)"),
        (nn.GroupNorm(2, 6, affine=False), [4], "GroupNorm(2, 4, eps=1e-05, affine=False)"),
        (nn.PReLU(6), [4], "PReLU(num_parameters=4)"),
    ],
)
def test_each_kind_of_layer_takes_a_smaller_shape(layer: nn.Module, shape: list[int], expected: str):
    network = nn.Sequential(layer)
    apply_shapes(network, {"0": shape})
    assert repr(layer).startswith(expected.removesuffix(")"))
    if getattr(layer, "weight", None) is not None:
        assert list(layer.weight.shape) == shape


def test_a_batch_norm_without_weights_is_told_by_its_statistics():
    norm = nn.BatchNorm1d(6, affine=False)
    apply_shapes(norm_in := nn.Sequential(norm), {"0": [4]})
    assert norm.running_mean.shape == norm.running_var.shape == (4,)
    assert norm_in(torch.randn(3, 4)).shape == (3, 4)


def test_nothing_is_drawn_and_what_is_frozen_stays_frozen():
    network = nn.Sequential(nn.Linear(6, 4))
    network[0].weight.requires_grad_(requires_grad=False)
    state = torch.get_rng_state()
    apply_shapes(network, {"0": [3, 2]})
    assert torch.equal(torch.get_rng_state(), state)
    assert [parameter.requires_grad for parameter in network[0].parameters()] == [False, True]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"nothing": [1]}, "nothing is not a layer"),
        ({"0.weight": [1, 1, 1, 1]}, "0.weight is not a layer"),
        ({"0": [2, 3]}, "0 has shape"),
        ({"0": [9, 2, 3, 3]}, "0 has shape"),
        ({"0": [0, 2, 3, 3]}, "0 has shape"),
        ({"0": [4, 2, 2, 3]}, r"0 \(Conv2d\) of shape .* cannot be reduced to"),
        ({"1": [3]}, r"1 \(GroupNorm\) of shape .* cannot be reduced to"),
        ({"2.alone": [3, 3]}, r"2.alone has shape"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(shapes: dict[str, list[int]], message: str):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Module())
    network[2].alone = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=message):
        apply_shapes(network, shapes)


def test_networks_that_differ_in_more_are_told():
    with pytest.raises(ValueError, match=r"only one has 1"):
        changed_shapes(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
