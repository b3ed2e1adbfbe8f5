import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torchvision.ops import StochasticDepth

from stormproof_train.activations import Elementwise, activation_factory
from stormproof_train.initialization import auto
from stormproof_train.models import CNN, MLP, ResNet, TorchvisionModel, Transformer
from stormproof_train.models.widths import hidden_widths
from tests.support.cases import slow_except
from tests.support.hydra_configs import REPRESENTATIVES, build_activation


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels[:16]).float() / 6 - 1, torch.from_numpy(labels[:16])


DIGITS = _digits()


def _shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in network.parameters()]


def _kinds(network: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in network]


@pytest.mark.parametrize(
    ("arguments", "units"),
    [
        ({}, [128, 128]),
        ({"width": 7, "depth": 3}, [7, 7, 7]),
        ({"depth": 0}, []),
        ({"widths": [5, 4]}, [5, 4]),
        ({"widths": []}, []),
        ({"widths": [9], "width": 1, "depth": 4}, [9]),
    ],
)
def test_an_mlp_has_the_layers_it_was_asked_for(arguments: dict[str, object], units: list[int]):
    network = MLP((1, 8, 8), 10, nn.ReLU, **arguments)
    sizes = [64, *units, 10]
    expected = [shape for i, o in itertools.pairwise(sizes) for shape in ((o, i), (o,))]
    assert _shapes(network) == expected
    assert network(torch.zeros(4, 1, 8, 8)).shape == (4, 10)


@pytest.mark.parametrize(
    ("arguments", "block"),
    [
        ({}, ["Linear", "Tanh"]),
        ({"norm": "batch"}, ["Linear", "BatchNorm1d", "Tanh"]),
        ({"norm": "layer"}, ["Linear", "LayerNorm", "Tanh"]),
        ({"dropout": 0.5}, ["Linear", "Tanh", "Dropout"]),
        ({"norm": "layer", "dropout": 0.5}, ["Linear", "LayerNorm", "Tanh", "Dropout"]),
    ],
)
def test_an_mlps_block_is_linear_norm_activation_dropout(arguments: dict[str, object], block: list[str]):
    assert _kinds(MLP((10,), 1, nn.Tanh, **arguments)) == ["Flatten", *block, *block, "Linear"]


@pytest.mark.parametrize(
    ("arguments", "channels"),
    [
        ({}, [16, 32, 64]),
        ({"width": 4, "depth": 2}, [4, 8]),
        ({"widths": [3, 5]}, [3, 5]),
        ({"depth": 1}, [16]),
    ],
)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 30)])
def test_a_cnn_has_two_convolutions_a_block(
    shape: tuple[int, int, int], arguments: dict[str, object], channels: list[int]
):
    network = CNN(shape, 10, nn.ReLU, **arguments)
    sizes = [shape[0], *channels]
    expected = [shape for i, o in itertools.pairwise(sizes) for shape in ((o, i, 3, 3), (o,), (o, o, 3, 3), (o,))]
    assert _shapes(network) == [*expected, (10, channels[-1]), (10,)]
    assert network(torch.zeros(2, *shape)).shape == (2, 10)
    assert _kinds(network.features).count("MaxPool2d") == len(channels) - 1


@pytest.mark.parametrize("width", [1, 8, 12, 17, 28, 64])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_a_cnn_of_any_width_takes_any_norm(norm: str, width: int):
    network = CNN((1, 8, 8), 10, nn.ReLU, width=width, depth=1, norm=norm)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_cnns_mean_over_positions_is_the_same_for_any_place_of_the_image():
    network = CNN((1, 16, 16), 3, nn.ReLU, width=4, depth=1)
    image = torch.zeros(1, 1, 16, 16)
    image[..., 5:8, 5:8] = torch.rand(3, 3)
    torch.testing.assert_close(network(image), network(image.roll((3, 2), dims=(2, 3))))


REFUSED = {
    "a width of none": (MLP, (10,), {"width": 0}, "`widths` must be at least 1 for each layer, got [0, 0]"),
    "a width of none in a list": (
        MLP,
        (10,),
        {"widths": [4, 0]},
        "`widths` must be at least 1 for each layer, got [4, 0]",
    ),
    "a negative depth": (MLP, (10,), {"depth": -1}, "`depth` must be at least 0, got -1"),
    "a sure dropout": (MLP, (10,), {"dropout": 1.0}, "`dropout` must be in [0, 1), got 1.0"),
    "a negative dropout": (MLP, (10,), {"dropout": -0.1}, "`dropout` must be in [0, 1), got -0.1"),
    "a dropout that is no number": (MLP, (10,), {"dropout": float("nan")}, "`dropout` must be in [0, 1), got nan"),
    "a table for a CNN": (CNN, (10,), {}, "a CNN needs images (channels, height, width), sequences"),
    "a CNN without a block": (CNN, (1, 8, 8), {"depth": 0}, "`depth` of a CNN must be at least 1"),
    "a CNN of no blocks": (CNN, (1, 8, 8), {"widths": []}, "`depth` of a CNN must be at least 1"),
    "a CNN of negative depth": (CNN, (1, 8, 8), {"depth": -2}, "`depth` must be at least 0, got -2"),
    "a CNN too deep": (CNN, (1, 8, 9), {"depth": 5}, "size 8x9 are too small for a CNN that halves them 4 times"),
    "a CNN of negative width": (CNN, (1, 8, 8), {"width": -4}, "must be at least 1 for each layer, got [-4, -8, -16]"),
    "a CNN's dropout": (CNN, (1, 8, 8), {"dropout": 2.0}, "`dropout` must be in [0, 1), got 2.0"),
    "a CNN of four dimensions": (CNN, (1, 8, 8, 8, 8), {}, "got samples of shape (1, 8, 8, 8, 8)"),
    "a table for a ResNet": (ResNet, (10,), {}, "a ResNet needs images (channels, height, width), sequences"),
    "a ResNet without a block": (ResNet, (1, 8, 8), {"depth": 0}, "must be at least 1, got 0 and [16, 32, 64]"),
    "a ResNet without a stage": (ResNet, (1, 8, 8), {"widths": []}, "must be at least 1, got 1 and []"),
    "a ResNet too deep": (ResNet, (1, 3, 9), {}, "size 3x9 are too small for a ResNet that halves them 2 times"),
    "a ResNet that skips all": (ResNet, (1, 8, 8), {"drop_path": 1.0}, "`drop_path` must be in [0, 1), got 1.0"),
    "a Transformer without a block": (
        Transformer,
        (1, 8),
        {"depth": 0},
        "must be at least 1, and `width` a multiple of `heads`, got depth=0",
    ),
    "heads that do not divide": (
        Transformer,
        (1, 8),
        {"width": 10},
        "`width` a multiple of `heads`, got depth=4, heads=4, expansion=2 and width=10",
    ),
    "patches that do not divide": (
        Transformer,
        (1, 8, 9),
        {"patch_size": 2},
        "`patch_size` must divide the sides of the samples",
    ),
    "patches of nothing": (
        Transformer,
        (1, 8),
        {"patch_size": 0},
        "`patch_size` must divide the sides of the samples (8), got 0",
    ),
    "a Transformer that skips all": (Transformer, (1, 8), {"drop_path": -0.1}, "`drop_path` must be in"),
    "two channels for torchvision": (TorchvisionModel, (2, 32, 32), {}, "resnet18 needs images with 1 or 3 channels"),
    "no model of torchvision": (
        TorchvisionModel,
        (1, 32, 32),
        {"name": "resnet1"},
        "no classifier resnet1. Similar names: resnet18, resnet101, ",
    ),
    "a detector of torchvision": (
        TorchvisionModel,
        (1, 32, 32),
        {"name": "fasterrcnn_resnet50_fpn"},
        "torchvision has no classifier fasterrcnn_resnet50_fpn. Similar names: ",
    ),
}


@pytest.mark.parametrize(("model", "shape", "arguments", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_an_impossible_network_is_refused_with_the_value(
    model: type[nn.Module], shape: tuple[int, ...], arguments: dict[str, object], sentence: str
):
    with pytest.raises(ValueError, match=r"depth|width|drop|images|halves|patch|channels|no classifier") as excinfo:
        model(shape, 10, nn.ReLU, **arguments)
    assert sentence in str(excinfo.value)


def test_the_deepest_cnn_that_fits_works():
    assert CNN((1, 8, 9), 2, nn.ReLU, width=1, depth=4)(torch.zeros(1, 1, 8, 9)).shape == (1, 2)


def test_widths_are_a_list_of_its_own():
    widths = [3, 4]
    chosen = hidden_widths(1, 1, widths, 0.0)
    assert chosen == widths
    assert chosen is not widths


def test_each_place_has_an_activation_of_its_own():
    network = MLP((4,), 2, activation_factory(nn.PReLU), depth=3)
    places = [layer for layer in network if isinstance(layer, nn.PReLU)]
    assert len({id(position.weight) for position in places}) == 3


def test_a_plain_function_becomes_a_module_that_computes_it():
    module = activation_factory(lambda: torch.tanh)()
    assert isinstance(module, Elementwise)
    x = torch.linspace(-2, 2, 6).reshape(2, 3)
    assert torch.equal(module(x), torch.tanh(x))


@pytest.mark.parametrize("function", [torch.tanh, functools.partial(torch.tanh), nn.functional.elu])
def test_a_function_as_a_module_says_which_one_it_is(function: Callable[[torch.Tensor], torch.Tensor]):
    assert str(Elementwise(function)) in {"Elementwise(tanh)", "Elementwise(elu)"}


def test_a_module_stays_what_it_is():
    module = nn.ELU(0.5)
    assert activation_factory(lambda: module)() is module


@pytest.mark.parametrize("shape", [(2, 12), (2, 12, 8), (2, 4, 8, 4)], ids=["sequences", "images", "volumes"])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("model", [CNN, ResNet])
def test_a_convolutional_network_takes_any_number_of_dimensions(
    model: type[nn.Module], norm: str, shape: tuple[int, ...]
):
    network = model(shape, 3, nn.ReLU, width=4, norm=norm)
    assert network(torch.randn(5, *shape)).shape == (5, 3)


def test_a_resnet_has_the_layers_it_was_asked_for():
    network = ResNet((3, 16, 16), 10, nn.ReLU, width=8, depth=2)
    strides = [module.stride[0] for module in network.modules() if isinstance(module, nn.Conv2d)]
    channels = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    # the stem; two blocks of two; each other stage begins with a shortcut of its own
    assert strides == [1, *[1] * 4, *[2, 1, 2, 1, 1], *[2, 1, 2, 1, 1]]
    assert channels == [8, *[8] * 4, *[16] * 5, *[32] * 5]
    assert network.features(torch.zeros(1, 3, 16, 16)).shape == (1, 32, 4, 4)


def test_a_residual_block_without_its_residual_is_its_shortcut():
    network = ResNet((1, 8, 8), 3, nn.ReLU, width=4, depth=1)
    block = network.features[3]
    x = torch.randn(2, 4, 8, 8)
    nn.init.zeros_(block.residual[4].weight)
    torch.testing.assert_close(block(x), x.relu())


@pytest.mark.parametrize("model", [ResNet, Transformer])
def test_the_last_block_is_skipped_with_the_probability_given_and_earlier_ones_less(model: type[nn.Module]):
    network = model((1, 8, 8), 3, nn.ReLU, width=8, depth=4, drop_path=0.4)
    rates = [module.p for module in network.modules() if isinstance(module, StochasticDepth)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.4)
    assert rates[0] == pytest.approx(0.4 / len(set(rates)))


@pytest.mark.parametrize("model", [ResNet, Transformer])
def test_what_is_dropped_in_training_is_there_in_evaluation(model: type[nn.Module]):
    network = model((1, 8, 8), 3, nn.ReLU, width=8, depth=1, drop_path=0.5, dropout=0.5)
    x = torch.randn(2, 1, 8, 8)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    ("shape", "tokens", "side"),
    [
        ((1, 8, 8), 64, 1),
        ((1, 28, 28), 49, 4),
        ((3, 32, 32), 64, 4),
        ((1, 40), 40, 1),
        ((10,), 10, 1),
        ((2, 130), 26, 5),
    ],
    ids=str,
)
def test_patches_are_as_small_as_sixty_four_of_them_allow(shape: tuple[int, ...], tokens: int, side: int):
    network = Transformer(shape, 3, nn.GELU, width=8, depth=1)
    assert network.position.shape == (tokens, 8)
    assert network.embedding.kernel_size[0] == side
    assert network(torch.randn(5, *shape)).shape == (5, 3)


@pytest.mark.parametrize(("shape", "tokens"), [((1, 67), 67), ((97,), 97), ((1, 1), 1), ((3, 2, 2), 4)], ids=str)
def test_a_sample_is_never_one_patch_where_it_can_be_several(shape: tuple[int, ...], tokens: int):
    assert Transformer(shape, 3, nn.GELU, width=8, depth=1).position.shape == (tokens, 8)


def test_a_transformer_with_its_positions_taken_away_does_not_know_their_order():
    network = Transformer((1, 12), 3, nn.GELU, width=8, depth=2)
    x = torch.randn(2, 1, 12)
    assert not torch.allclose(network(x), network(x.flip(2)), atol=1e-4)
    nn.init.zeros_(network.position)
    torch.testing.assert_close(network(x), network(x.flip(2)))


def test_attention_is_that_of_torch():
    network = Transformer((1, 6), 3, nn.GELU, width=8, depth=1, heads=2)
    attention = network.blocks[0][0].residual[1]
    torchs = nn.MultiheadAttention(8, 2, batch_first=True)
    torchs.in_proj_weight.data = attention.queries_keys_values.weight.data
    torchs.in_proj_bias.data = attention.queries_keys_values.bias.data
    torchs.out_proj.load_state_dict(attention.projection.state_dict())
    x = torch.randn(4, 6, 8)
    torch.testing.assert_close(attention(x), torchs(x, x, x)[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_torchvision_takes_one_channel_or_three(channels: int):
    network = TorchvisionModel((channels, 32, 32), 7, nn.ELU, name="resnet18")
    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 7)
    assert sum(isinstance(module, nn.ELU) for module in network.modules()) == 9


TRAINED = {
    "mlp": (MLP, (1, 8, 8), {"width": 33}),
    "cnn": (CNN, (1, 8, 8), {"width": 5, "depth": 2}),
    "cnn of sequences": (CNN, (1, 64), {"width": 5, "depth": 2, "norm": "group"}),
    "resnet": (ResNet, (1, 8, 8), {"widths": [7]}),
    "transformer": (Transformer, (1, 8, 8), {"width": 12, "depth": 1, "patch_size": 2}),
}


@pytest.mark.parametrize(
    ("word", "name"),
    slow_except(itertools.product(REPRESENTATIVES, TRAINED), [("relu", name) for name in TRAINED]),
)
def test_every_kind_of_activation_trains_in_every_model(word: str, name: str):
    """All parameters get a gradient, and the loss falls below any that a constant prediction can have."""
    model, shape, arguments = TRAINED[name]
    activation = build_activation(word)
    network = model(shape, 10, activation, **arguments)
    auto(network, activation, shape)
    images, labels = DIGITS
    shares = labels.bincount() / len(labels)
    of_the_best_constant = -(shares * shares.log()).sum()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images.reshape(-1, *shape)), labels)
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
        optimizer.step()
        if loss < 0.85 * of_the_best_constant:
            return
    pytest.fail(f"a loss of {loss:.3f} after 200 steps, and the best constant has {of_the_best_constant:.3f}")
