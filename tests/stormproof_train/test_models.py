import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from stormproof_train.activations import Elementwise, activation_factory
from stormproof_train.models import CNN, MLP
from stormproof_train.models.widths import hidden_widths


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
    "a width of none": (MLP, (10,), {"width": 0}, "widths are [0, 0]; each layer needs at least 1"),
    "a width of none in a list": (MLP, (10,), {"widths": [4, 0]}, "widths are [4, 0]"),
    "a negative depth": (MLP, (10,), {"depth": -1}, "depth is -1 layers; it must be at least 0"),
    "a sure dropout": (MLP, (10,), {"dropout": 1.0}, "dropout is 1.0; it must be in [0, 1)"),
    "a negative dropout": (MLP, (10,), {"dropout": -0.1}, "dropout is -0.1; it must be in [0, 1)"),
    "a dropout that is no number": (MLP, (10,), {"dropout": float("nan")}, "dropout is nan"),
    "a table for a CNN": (CNN, (10,), {}, "a CNN needs images (channels, height, width), not samples of shape (10,)"),
    "a CNN without a block": (CNN, (1, 8, 8), {"depth": 0}, "a CNN needs a depth of at least 1 block"),
    "a CNN of no blocks": (CNN, (1, 8, 8), {"widths": []}, "a CNN needs a depth of at least 1 block"),
    "a CNN of negative depth": (CNN, (1, 8, 8), {"depth": -2}, "depth is -2 layers"),
    "a CNN too deep": (CNN, (1, 8, 9), {"depth": 5}, "8x9 images are too small for 5 blocks"),
    "a CNN of negative width": (CNN, (1, 8, 8), {"width": -4}, "widths are [-4, -8, -16]"),
    "a CNN's dropout": (CNN, (1, 8, 8), {"dropout": 2.0}, "dropout is 2.0"),
}


@pytest.mark.parametrize(("model", "shape", "arguments", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_an_impossible_network_is_refused_with_the_value(
    model: type[nn.Module], shape: tuple[int, ...], arguments: dict[str, object], sentence: str
):
    with pytest.raises(ValueError, match=r"depth|width|dropout|images") as caught:
        model(shape, 10, nn.ReLU, **arguments)
    assert sentence in str(caught.value)


def test_the_deepest_cnn_that_fits_works():
    assert CNN((1, 8, 9), 2, nn.ReLU, width=1, depth=4)(torch.zeros(1, 1, 8, 9)).shape == (1, 2)


def test_widths_are_a_list_of_its_own():
    given = [3, 4]
    chosen = hidden_widths(1, 1, given, 0.0)
    assert chosen == given
    assert chosen is not given


def test_each_place_has_an_activation_of_its_own():
    network = MLP((4,), 2, activation_factory(nn.PReLU), depth=3)
    places = [layer for layer in network if isinstance(layer, nn.PReLU)]
    assert len({id(place.weight) for place in places}) == 3


def test_a_plain_function_becomes_a_module_that_computes_it():
    made = activation_factory(lambda: torch.tanh)()
    assert isinstance(made, Elementwise)
    x = torch.linspace(-2, 2, 6).reshape(2, 3)
    assert torch.equal(made(x), torch.tanh(x))


@pytest.mark.parametrize("function", [torch.tanh, functools.partial(torch.tanh), nn.functional.elu])
def test_a_function_as_a_module_says_which_one_it_is(function: Callable[[torch.Tensor], torch.Tensor]):
    assert str(Elementwise(function)) in {"Elementwise(tanh)", "Elementwise(elu)"}


def test_a_module_stays_what_it_is():
    module = nn.ELU(0.5)
    assert activation_factory(lambda: module)() is module
