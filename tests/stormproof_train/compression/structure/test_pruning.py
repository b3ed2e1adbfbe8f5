import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from stormproof_train.activations import Activation, Maxout, crelu
from stormproof_train.compression.structure.channels import WeightedLayer
from stormproof_train.compression.structure.macs import count_macs
from stormproof_train.compression.structure.pruning import UnitPruner
from stormproof_train.compression.structure.rebuild import apply_structure
from stormproof_train.compression.structure.shapes import changed_shapes
from stormproof_train.compression.structure.split_layers import join_pieces
from stormproof_train.errors import UserError
from stormproof_train.models import CNN, MLP, TorchvisionModel
from tests.stormproof_train.compression.small_networks import (
    ACTIVATIONS,
    INPUT_SHAPE,
    MODELS,
    make_samples,
    prune,
    randomize_weights,
)
from tests.support.cases import slow_except, vary_one_factor
from tests.support.hydra_configs import REPRESENTATIVES, build_activation

ACROSS = {("cnn_group", "maxout_3"), ("resnet_group", "maxout_3")}
"""48 features in groups of 8, of which 3 make a unit."""


def _assert_halved(build, inputs: torch.Tensor, unpruned: set[str]) -> None:
    network = randomize_weights(build()).eval()
    pruning = UnitPruner(network, inputs, block=1)
    half = pruning.prune_to(pruning.macs // 2)
    assert set(pruning.unprunable_layers) == unpruned
    assert pruning.min_macs <= count_macs(half, inputs) <= pruning.macs // 2
    outputs = half(inputs)
    assert outputs.shape == network(inputs).shape
    assert outputs.isfinite().all()
    rebuilt = apply_structure(build(), changed_shapes(half, build())).eval()
    rebuilt.load_state_dict(half.state_dict(), strict=True)
    assert torch.equal(rebuilt(inputs), outputs)


@pytest.mark.parametrize(
    ("model", "activation"),
    slow_except(
        sorted({*vary_one_factor(MODELS, ACTIVATIONS, "cnn_batch", "maxout"), *ACROSS}),
        [*vary_one_factor(MODELS, ["relu", "maxout", "own"], "cnn_batch", "maxout"), *ACROSS],
    ),
)
def test_each_model_is_halved_with_each_activation_and_built_again(model: str, activation: str):
    network = MODELS[model](ACTIVATIONS[activation])
    *_, last = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    if (model, activation) in ACROSS:
        with pytest.raises(UserError, match=r"are in different groups of GroupNorm"):
            prune(network, make_samples(), 1)
        return
    attention = {"blocks.0.0.residual.1.queries_keys_values"} if model == "transformer" else set()
    _assert_halved(lambda: MODELS[model](ACTIVATIONS[activation]), make_samples(), {last} | attention)


@pytest.mark.parametrize("word", slow_except(REPRESENTATIVES, ["crelu", "swiglu"]))
def test_every_kind_of_activation_that_ships_can_be_pruned(word: str):
    activation = build_activation(word)
    _assert_halved(lambda: MLP(INPUT_SHAPE, 4, activation, widths=[8, 6], norm="batch"), make_samples(), {"7"})
    _assert_halved(lambda: CNN(INPUT_SHAPE, 4, activation, widths=[8]), make_samples(), {"head.1"})


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 9), (2, 4, 4, 4)])
def test_sequences_and_volumes_are_pruned_like_images(shape: tuple[int, ...]):
    _assert_halved(lambda: CNN(shape, 4, Maxout, widths=[4, 6], norm="batch"), make_samples(4, *shape), {"head.1"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_networks_of_torchvision_are_halved_and_built_again(name: str):
    last = {"resnet18": "model.fc", "mobilenet_v3_small": "model.classifier.3"}[name]
    network = TorchvisionModel((3, 32, 32), 4, nn.ReLU, name=name)
    _assert_halved(lambda: copy.deepcopy(network), make_samples(2, 3, 32, 32), {last})


@pytest.mark.parametrize(
    ("model", "activation"),
    slow_except(
        vary_one_factor(
            ["mlp", "mlp_batch", "cnn", "cnn_batch", "resnet_batch"],
            ["relu", "prelu", "crelu", "maxout", "maxout_3", "glu", "swiglu", "own"],
            "cnn_batch",
            "maxout",
        ),
        [("cnn_batch", "relu"), ("cnn_batch", "crelu"), ("cnn_batch", "swiglu"), ("mlp", "maxout")],
    ),
)
def test_a_pruned_network_computes_what_the_whole_does_where_nothing_reads_the_units_that_went(
    model: str, activation: str
):
    network = randomize_weights(MODELS[model](ACTIVATIONS[activation])).eval()
    pruning = UnitPruner(network, make_samples(), block=1)
    count = len(pruning._cuts) // 2
    unread = copy.deepcopy(pruning._split_network)
    layers = dict(unread.named_modules())
    with torch.no_grad():
        for cut in pruning._cuts[:count]:
            (unit,) = cut.units
            for (name, at), channels in unit.channels.items():
                if at == "in":
                    layers[name].weight[:, channels] = 0
        join_pieces(unread)
        pruned = pruning._restore_network(pruning._apply_cuts(count))
        assert not torch.allclose(network(make_samples()), pruned(make_samples()), rtol=1e-3)
        torch.testing.assert_close(pruned(make_samples()), unread(make_samples()))


@pytest.mark.parametrize(
    ("activation", "features"),
    [(Maxout, [4, 5]), (lambda: Maxout(3), [6, 7, 8]), (ACTIVATIONS["reglu"], [2, 10]), (ACTIVATIONS["own"], [2, 13])],
)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_unit_whose_pieces_all_are_small_goes_first(activation: Activation, features: list[int], norm: str):
    network = randomize_weights(MLP((5,), 3, activation, widths=[8], norm=norm))
    first, last = network[1], network[-1]
    with torch.no_grad():
        first.weight[features] *= 1e-3
        last.weight[:, 2] *= 1e-3
        if norm == "batch":
            network[2].weight[features] *= 1e-3
        first.weight[0] = 0  # of another unit, one piece alone
    pruned = prune(network, make_samples(4, 5), count_macs(network, make_samples(4, 5)) - 1, block=1)
    kept_features = [feature for feature in range(len(first.weight)) if feature not in features]
    assert torch.equal(pruned[1].weight, first.weight[kept_features])
    assert torch.equal(pruned[1].bias, first.bias[kept_features])
    assert torch.equal(pruned[-1].weight, last.weight[:, [0, 1, 3, 4, 5, 6, 7]])
    if norm == "batch":
        assert torch.equal(pruned[2].running_mean, network[2].running_mean[kept_features])


def test_both_features_that_crelu_makes_of_one_go_with_it():
    network = randomize_weights(MLP((5,), 3, lambda: _Function(crelu), widths=[8]))
    with torch.no_grad():
        network[1].weight[1] *= 1e-3
        network[3].weight[:, [1, 5]] *= 1e-3
    pruned = prune(network, make_samples(4, 5), count_macs(network, make_samples(4, 5)) - 1, block=1)
    assert torch.equal(pruned[1].weight, network[1].weight[[0, 2, 3]])
    assert torch.equal(pruned[3].weight, network[3].weight[:, [0, 2, 3, 4, 6, 7]])


def test_a_layer_keeps_a_tenth_of_its_units_and_two():
    network = MLP(INPUT_SHAPE, 4, nn.ReLU, widths=[64, 6])
    pruning = UnitPruner(network, make_samples(), block=1)
    fewest = pruning.prune_to(pruning.min_macs)
    assert [fewest[1].out_features, fewest[3].out_features, fewest[5].out_features] == [7, 2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("activation", [nn.ReLU, Maxout], ids=["relu", "maxout"])
def test_layers_are_left_with_whole_blocks_of_channels_or_a_part_that_divides_one(activation: Activation):
    network = randomize_weights(CNN((1, 8, 8), 4, activation, widths=[24, 64], norm="batch"))
    left = set()
    for times in (1.3, 2, 3, 5, 8):
        pruned = prune(network, make_samples(), int(count_macs(network, make_samples()) / times))
        convolutions = [module for module in pruned.modules() if isinstance(module, nn.Conv2d)]
        left |= {module.in_channels for module in convolutions[1:]}
    assert left <= {16, 32, 48, 64, 8, 4, 2, 24}
    assert len(left) > 3


@pytest.mark.slow
def test_the_same_network_is_pruned_the_same_way():
    states = [
        prune(randomize_weights(MODELS["resnet_batch"](Maxout)), make_samples(), 20_000).state_dict() for _ in range(2)
    ]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_the_network_given_and_the_generator_stay_as_they_were():
    network = randomize_weights(MODELS["cnn_batch"](ACTIVATIONS["glu"])).train()
    network.features[4].eval()
    network.features[0].weight.requires_grad_(requires_grad=False)
    network(make_samples()).sum().backward()
    before, state = copy.deepcopy(network), torch.get_rng_state()
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
    assert len(gradients) == len(list(network.parameters())) - 1
    pruned = prune(network, make_samples(), 20_000)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, module), new_value in zip(before.named_modules(), network.modules(), strict=True):
        assert module.training == new_value.training == pruned.get_submodule(name).training
        assert not new_value._forward_hooks
        assert not new_value._forward_pre_hooks
    for (name, parameter), new_value in zip(before.named_parameters(), network.named_parameters(), strict=True):
        assert name == new_value[0]
        assert torch.equal(parameter, new_value[1])
        assert parameter.requires_grad == new_value[1].requires_grad == pruned.get_parameter(name).requires_grad
        assert new_value[1].grad is None if name not in gradients else torch.equal(new_value[1].grad, gradients[name])
        assert pruned.get_parameter(name).grad is None
    pruned(make_samples()).sum().backward()


class _Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class _Reversing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x.flip(1))


def _normed_network() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 6))


def _shared_network() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    network[2].weight = network[0].weight
    return network


@pytest.mark.parametrize(
    ("network", "inputs", "layer", "reason"),
    [
        (
            lambda: nn.Sequential(nn.Conv1d(2, 8, 1), _Function(lambda x: x.flip(1)), nn.Conv1d(8, 2, 1)),
            (2, 5),
            "0",
            "cannot be traced",
        ),
        (
            lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Softmax(1), _Reversing()),
            (6,),
            "0",
            "cannot be traced",
        ),
        (_normed_network, (6,), "0", "its weight is computed from other parameters"),
        (_shared_network, (6,), "0", "another layer shares its parameters"),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8), "linear2", "MultiheadAttention"),
        (
            lambda: nn.Sequential(nn.Linear(6, 8), _Function(lambda x: x.cumsum(1)[:, 4:]), nn.Linear(4, 2)),
            (6,),
            "0",
            "in an unknown way",
        ),
        (lambda: nn.Sequential(nn.ConvTranspose1d(2, 8, 1), nn.Conv1d(8, 2, 1)), (2, 5), "0", "ConvTranspose1d"),
    ],
)
def test_layers_that_cannot_be_pruned_stay_and_the_reason_is_told(network, inputs, layer: str, reason: str):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensors.*")
        pruning = UnitPruner(network(), torch.randn(2, *inputs), block=1)
    assert reason in pruning.unprunable_layers[layer]


def test_a_reduction_that_is_impossible_is_refused_with_what_is_possible():
    network = MLP(INPUT_SHAPE, 4, nn.ReLU, widths=[8])
    with pytest.raises(
        UserError, match=r"MLP cannot be pruned to 100 .* the minimum is 136 of 544 .*3: its channels are outp"
    ):
        prune(network, make_samples(), 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "swin_t"])
def test_a_network_that_cannot_be_followed_is_refused(name: str):
    network = TorchvisionModel((3, 32, 32), 4, nn.ReLU, name=name)
    with pytest.raises(UserError, match="TorchvisionModel cannot be pruned, because its layers cannot be traced"):
        prune(network, make_samples(2, 3, 32, 32), 1000)


def test_one_sample_is_too_few():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        UnitPruner(MLP(INPUT_SHAPE, 4, nn.ReLU), make_samples(1))


@pytest.mark.slow
def test_all_layers_of_all_models_are_pruned_but_the_last_and_attention():
    for model, build in MODELS.items():
        network = build(nn.ReLU)
        pruning = UnitPruner(network, make_samples(), block=1)
        fewest = pruning.prune_to(pruning.min_macs)
        for name, layer in network.named_modules():
            if isinstance(layer, WeightedLayer) and name not in pruning.unprunable_layers:
                assert len(fewest.get_submodule(name).weight) < len(layer.weight), (model, name)
