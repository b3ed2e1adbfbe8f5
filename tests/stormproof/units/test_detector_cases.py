"""Where the units are, in networks of every kind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_fits import LIGHTNINGS_OWN
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from unit_fits import (
    At,
    Named,
    Validated,
    constant,
    conv,
    dense,
    fit,
    inputs,
    mlp,
    quiet,
    set_,
    set_row,
    still,
)

pytestmark = [*LIGHTNINGS_OWN, pytest.mark.filterwarnings("ignore:.*cannot be told.*")]


class OwnPlus(nn.Module):
    """An activation of somebody's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0)


def two_heads(net: Any, x: torch.Tensor) -> torch.Tensor:
    h = functional.relu(net.a(x))
    return net.b(h) + net.c(h)


def loop(net: Any, x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        x = net.act(net.a(x))
    return net.out(x)


def functional_loop(net: Any, x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        x = functional.relu(net.a(x))
    return net.out(x)


def gelu_then_in_place_sum(net: Any, x: torch.Tensor) -> torch.Tensor:
    h = net.act(net.a(x))
    h += x
    return net.out(h)


PADDING = 9.0
IMAGES, TOKENS, ROWS = (1, 6, 6), (5, 6), (6,)
PLACES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module], dict[str, list[int]]]] = {
    "a module behind a dense layer": (
        ROWS,
        lambda: nn.Sequential(dense(4, dead=1), nn.ReLU(), dense(1, 4)),
        {"net.1": [1]},
    ),
    "a function, seen where it is consumed": (
        ROWS,
        lambda: Named(lambda net, x: net.out(functional.relu(net.a(x))), a=dense(4, dead=1), out=dense(1, 4)),
        {"net.out": [1]},
    ),
    "an activation of one's own": (
        ROWS,
        lambda: nn.Sequential(dense(4, dead=1), OwnPlus(), dense(1, 4)),
        {"net.1": [1]},
    ),
    "one that is applied before any layer": (ROWS, lambda: nn.Sequential(nn.ReLU(), dense(1)), {"net.0": []}),
    "channels of a convolution, over all positions": (
        IMAGES,
        lambda: nn.Sequential(conv(3, 2), nn.ReLU(), nn.Flatten(), dense(1, 48)),
        {"net.1": [2]},
    ),
    "a convolution with batch norm, in place": (
        IMAGES,
        lambda: nn.Sequential(
            set_row(conv(3, 2), 2, -1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), dense(1, 48)
        ),
        {"net.2": [2]},
    ),
    "as in LeNet: function, pool, flatten": (
        IMAGES,
        lambda: Named(
            lambda net, x: net.out(functional.max_pool2d(functional.relu(net.a(x)), 2).flatten(1)),
            a=conv(3, 2),
            out=dense(1, 12),
        ),
        {"net.out": [2]},
    ),
    "channels flattened behind their positions": (
        IMAGES,
        lambda: Named(
            lambda net, x: net.out(functional.relu(net.a(x)).permute(0, 2, 3, 1).flatten(1)),
            a=conv(3, 2),
            out=dense(1, 48),
        ),
        {"net.out": [2]},
    ),
    "a mean over positions": (
        IMAGES,
        lambda: Named(lambda net, x: net.out(functional.relu(net.a(x)).mean((2, 3))), a=conv(3, 2), out=dense(1, 3)),
        {"net.out": [2]},
    ),
    "positions that were flattened before the activation": (
        IMAGES,
        lambda: nn.Sequential(conv(3, 2), nn.Flatten(), nn.ReLU(), dense(1, 48)),
        {"net.2": list(range(32, 48))},
    ),
    "a convolution in one dimension": (
        (2, 9),
        lambda: nn.Sequential(conv(3, 1, 2, nn.Conv1d), nn.ReLU(), nn.Flatten(), dense(1, 21)),
        {"net.1": [1]},
    ),
    "as many channels as positions": (
        (2, 6),
        lambda: nn.Sequential(conv(4, 1, 2, nn.Conv1d), nn.ReLU(), nn.Flatten(), dense(1, 16)),
        {"net.1": [1]},
    ),
    "a transposed convolution": (
        IMAGES,
        lambda: nn.Sequential(conv(3, 1, 1, nn.ConvTranspose2d), nn.ReLU(), nn.Flatten(), dense(1, 192)),
        {"net.1": [1]},
    ),
    "channels that became the last dimension, twice the positions": (
        (6, 4),
        lambda: Named(
            lambda net, x: net.out(net.act(net.a(x).transpose(1, 2))),
            a=conv(4, 1, 6, nn.Conv1d),
            act=nn.ReLU(),
            out=dense(1, 4),
        ),
        {"net.act": [1]},
    ),
    "tokens": (TOKENS, lambda: nn.Sequential(dense(4, dead=1), nn.ReLU(), dense(1, 4)), {"net.1": [1]}),
    "as many tokens as units": (
        (4, 6),
        lambda: nn.Sequential(dense(4, dead=1), nn.ReLU(), dense(1, 4)),
        {"net.1": [1]},
    ),
    "tokens, flattened": (
        TOKENS,
        lambda: Named(
            lambda net, x: net.out(functional.relu(net.a(x)).flatten(1)), a=dense(4, dead=1), out=dense(1, 20)
        ),
        {"net.out": [1]},
    ),
    "a layer that mixes tokens": (
        TOKENS,
        lambda: Named(
            lambda net, x: net.mix(functional.relu(net.a(x)).transpose(1, 2)), a=dense(4, dead=1), mix=dense(2, 5)
        ),
        {"net.mix": [1]},
    ),
    "a GLU whose gate is shut": (
        ROWS,
        lambda: nn.Sequential(set_row(dense(8), 5, -200), nn.GLU(), dense(1, 4)),
        {"net.1": [1]},
    ),
    "a GLU over as many tokens as it has inputs": (
        (8, 6),
        lambda: nn.Sequential(set_row(dense(8), 5, -200), nn.GLU(), dense(1, 4)),
        {"net.1": [1]},
    ),
    "a GLU of channels": (
        IMAGES,
        lambda: nn.Sequential(set_row(conv(4, 3), 3, -200), nn.GLU(1), nn.Flatten(), dense(1, 32)),
        {"net.1": [1]},
    ),
    "a functional GLU": (
        ROWS,
        lambda: Named(lambda net, x: net.out(functional.glu(net.a(x))), a=set_row(dense(8), 5, -200), out=dense(1, 4)),
        {"net.out": [1]},
    ),
    "a functional GLU of channels": (
        (2, 9),
        lambda: Named(
            lambda net, x: net.out(functional.glu(net.a(x), 1)),
            a=set_row(conv(8, 5, 2, nn.Conv1d), 5, -200),
            out=nn.Conv1d(4, 1, 1),
        ),
        {"net.out": [1]},
    ),
    "a layer that takes an activation first and something else then": (
        ROWS,
        lambda: Named(
            lambda net, x: net.out(functional.relu(net.a(x))) + net.out(x), a=dense(6, dead=1), out=dense(1, 6)
        ),
        {"net.out": [1]},
    ),
    "a product with a SiLU": (
        ROWS,
        lambda: Named(
            lambda net, x: net.out(functional.silu(net.a(x)) * net.b(x)),
            a=dense(4),
            b=set_row(dense(4), 2, 0),
            out=dense(1, 4),
        ),
        {"net.out": [2]},
    ),
    "a gate written first": (
        ROWS,
        lambda: Named(
            lambda net, x: net.out(net.b(x) * torch.sigmoid(net.a(x))),
            a=set_row(dense(4), 2, -200),
            b=dense(4),
            out=dense(1, 4),
        ),
        {"net.out": [2]},
    ),
    "the square of a ReLU": (
        ROWS,
        lambda: Named(lambda net, x: net.out(functional.relu(net.a(x)).square()), a=dense(4, dead=1), out=dense(1, 4)),
        {"net.out": [1]},
    ),
    "an activation that two layers share": (
        ROWS,
        lambda: Named(
            lambda net, x: net.out(net.act(net.b(net.act(net.a(x))))),
            act=nn.ReLU(),
            a=dense(4, dead=1),
            b=dense(5, 4, dead=3),
            out=dense(1, 5),
        ),
        {"net.act@net.a": [1], "net.act@net.b": [3]},
    ),
    "a layer that is called again and again": (
        ROWS,
        lambda: Named(loop, a=dense(6, dead=1), act=nn.Tanh(), out=dense(1, 6)),
        {"net.act": [1]},
    ),
    "a function that two layers consume, at the first": (
        ROWS,
        lambda: Named(
            two_heads,
            a=dense(4, dead=1),
            b=dense(2, 4),
            c=dense(2, 4),
        ),
        {"net.b": [1]},
    ),
    "a layer that consumes two functions in turn": (
        ROWS,
        lambda: Named(
            lambda net, x: net.out(functional.relu(net.a(x))) + net.out(functional.relu(net.b(x))),
            a=dense(4, dead=1),
            b=dense(4, dead=2),
            out=dense(1, 4),
        ),
        {"net.out@net.a": [1], "net.out@net.b": [2]},
    ),
    "a module in place, then added to": (
        ROWS,
        lambda: Named(
            lambda net, x: net.out(x + net.act(net.a(x))), a=dense(6, dead=1), act=nn.ReLU(True), out=dense(1, 6)
        ),
        {"net.act": [1]},
    ),
    "an output that is changed in place afterwards": (
        ROWS,
        lambda: Named(gelu_then_in_place_sum, a=set_row(dense(6), 1, 0), act=nn.GELU(), out=dense(1, 6)),
        {"net.act": [1]},
    ),
    "a functional one that is changed in place before it is consumed is none any more": (
        ROWS,
        lambda: Named(
            lambda net, x: net.out(functional.gelu(net.a(x)).add_(x)), a=set_row(dense(6), 1, 0), out=dense(1, 6)
        ),
        {},
    ),
    "all units of a dead layer": (
        ROWS,
        lambda: nn.Sequential(set_row(dense(3), slice(None), -100), nn.ReLU(), dense(1, 3)),
        {"net.1": [0, 1, 2]},
    ),
    "layers inside of layers": (
        ROWS,
        lambda: nn.Sequential(nn.Sequential(dense(4, dead=1), nn.Sequential(nn.ReLU())), dense(1, 4)),
        {"net.0.1.0": [1]},
    ),
    "a transformer's feed-forward part": (
        (5, 4),
        lambda: nn.Sequential(transformer(batch_first=True), dense(1, 4)),
        {"net.0.linear2": [3]},
    ),
    "a transformer with an activation module": (
        (5, 4),
        lambda: nn.Sequential(transformer(batch_first=True, activation=nn.ReLU()), dense(1, 4)),
        {"net.0.activation": [3]},
    ),
    "a network without activations": (ROWS, lambda: nn.Sequential(dense(4), dense(1, 4)), {}),
}


def transformer(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, **options)
    set_(layer.linear1, slice(None), bias=1)
    set_(layer.linear1, 3, bias=-100)
    return layer


@pytest.mark.parametrize("case", PLACES)
def test_units_are_found_in(case: str):
    """The other units are alive: so many inputs leave none of these out."""
    shape, make, expected = PLACES[case]
    torch.manual_seed(0)
    done = fit(make(), inputs(8, *shape), inputs(50, *shape, seed=1), optimizer=still, size=16)
    found = {name: [unit for unit, dead in enumerate(done[name]) if dead] for name in done.dead.dead_units}
    assert found == expected
    assert all(activity.inputs == 50 for activity in done.dead.activity.values())


@pytest.mark.parametrize("activation", ["relu", nn.ReLU()])
@pytest.mark.parametrize("sanity", [0, 1])
@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage.*")
def test_tokens_that_a_transformer_leaves_out_are_no_outputs(activation: Any, sanity: int):
    """In evaluation mode it nests what is not padding."""

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.out(net.encoder(x, src_key_padding_mask=x[..., 0] == PADDING))

    def padded(count: int) -> torch.Tensor:
        x = inputs(count, 5, 4)
        x[::2, 3:] = PADDING
        return x

    encoder = nn.TransformerEncoder(transformer(batch_first=True, activation=activation), 2)
    net = Named(run, encoder=encoder, out=dense(1, 4))
    done = fit(net, padded(8), padded(50), optimizer=still, size=16, num_sanity_val_steps=sanity)
    places = [
        f"net.encoder.layers.{layer}." + ("linear2" if activation == "relu" else "activation") for layer in (0, 1)
    ]
    assert [done[place].index(True) for place in places] == [3, 3]
    assert all(sum(done[place]) == 1 for place in places)
    assert all(done.dead.activity[place].inputs == 50 for place in places)


def test_an_activation_behind_a_recurrent_network_has_its_units():
    """Not those of the layer before it, of which there are as many as steps."""
    net = Named(
        lambda net, x: net.out(net.act(net.gru(net.a(x))[0])),
        a=dense(10),
        gru=nn.GRU(10, 3, batch_first=True),
        act=nn.Tanh(),
        out=dense(1, 3),
    )
    done = fit(net, inputs(8, 10, 6), inputs(7, 10, 6), optimizer=still)
    assert done["net.act"] == [False] * 3
    assert done.dead.activity["net.act"].layer == "net.gru"
    assert done.dead.activity["net.gru"].layer == "net.gru"


def test_a_unit_that_a_loop_uses_later_only_is_alive():
    """Calls of one layer are one place: its input in the first call, where it is no activation's output, is none."""
    net = Named(functional_loop, a=dense(6, dead=1), out=dense(1, 6))
    val = inputs(7, 6, seed=1)
    done = fit(net, inputs(8, 6), val)
    seen = []
    x = val
    with torch.inference_mode():
        for _ in range(3):
            x = functional.relu(net.a(x))  # type: ignore[operator]
            seen.append(x)
    assert done["net.a"] == constant(torch.cat(seen[:2]), 1)
    assert done["net.out"] == constant(seen[2], 1)
    assert done["net.a"][1]


def test_calls_that_come_later_are_those_of_the_same_place():
    """The batch that is traced makes one call, others make two: a unit may fire in the second alone."""

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        first = net.out(functional.relu(net.a(x)))
        return first if x[0, 0] > 0 else first + net.out(functional.relu(net.a(-x)))

    net = Named(run, a=nn.Linear(1, 2), out=nn.Linear(2, 1))
    with torch.no_grad():
        net.a.weight.copy_(torch.tensor([[1.0], [-1.0]]))  # type: ignore[operator,union-attr]
        net.a.bias.copy_(torch.tensor([-2.5, -1.0]))  # type: ignore[operator,union-attr]
    val = torch.tensor([1.0, 2.0, 1.0, 2.0, -2.0, -3.0, -2.0, -1.5])[:, None]
    assert fit(net, val, val[:4], optimizer=still)["net.out"] == [True, True]
    assert fit(net, val, val, optimizer=still)["net.out"] == [False, False]


def test_a_copy_of_the_network_is_another():
    """A teacher is copied from its student in the midst of training, hooks and all."""

    class Taught(Validated):
        def on_train_start(self) -> None:
            teacher = copy.deepcopy(self.net)
            with torch.no_grad():
                for parameter in teacher.parameters():
                    parameter.copy_(torch.ones_like(parameter))
            self.teacher = [teacher]

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.net(batch[0])
            self.teacher[0](batch[0])

    net = Named(
        lambda net, x: net.out(functional.relu(net.norm(net.b(net.act(net.a(x)))))),
        a=dense(4, dead=1),
        act=nn.ReLU(),
        b=dense(4, 4, dead=2),
        norm=nn.BatchNorm1d(4),
        out=dense(1, 4),
    )
    set_row(net.b, 2, 0.0)
    done = fit(Taught(net, still), inputs(8, 6), inputs(50, 6), size=16)
    assert [done[place].index(True) for place in ("net.act", "net.out")] == [1, 2]


def test_a_new_activation_is_no_less_so_for_its_outputs_being_several():
    class Halves(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x.chunk(2, -1)

    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return ()

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        one, other = net.halves(net.a(x))
        net.nothing(x)
        return net.out(one * other)

    net = Named(run, a=dense(8), halves=Halves(), nothing=Nothing(), out=dense(1, 4))
    assert fit(net, inputs(8, 6), inputs(7, 6)).dead.dead_units == {}


def test_an_expert_to_whom_no_input_comes_in_a_batch_is_judged_by_the_others():
    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.out(net.act(net.a(x[x[:, 0] > 10]))).sum() + net.b(x)

    net = Named(run, a=dense(4, dead=2), act=nn.ReLU(), out=dense(1, 4), b=dense(1))
    val = inputs(7, 6, seed=1)
    val[5:, 0] = 20
    train = val[[0, 6, 1, 5, 2, 3, 4]]
    done = fit(net, train, val)
    assert done["net.act"] == constant(functional.relu(net.a(val[5:])), 1)  # type: ignore[operator]
    assert done.dead.activity["net.act"].inputs == 2


def test_a_place_that_a_later_pass_does_not_see_is_known_no_longer():
    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.out(net.act(net.a(x))) if net.on else net.out(net.a(x))

    net: Any = Named(run, a=dense(4, dead=2), act=nn.ReLU(), out=dense(1, 4))
    net.on = True
    done = fit(net, inputs(8, 6), inputs(7, 6), At(4, lambda module: setattr(module.net, "on", False)), max_epochs=3)
    assert done.dead.counts["net.act"] == [(2, 1)]
    assert done.dead.dead_units == {}
    assert done.dead.activity == {}


def test_an_activation_that_is_never_called_is_said_to_be_unknown():
    net = Named(lambda net, x: net.a(x), a=dense(1), act=nn.ReLU())
    with pytest.warns(UserWarning, match="nothing has passed net.act: nothing is known"):
        done = fit(net, inputs(8, 6), inputs(7, 6))
    assert done.dead.dead_units == {}


# Recurrent networks

RECURRENT: dict[str, Callable[..., nn.Module]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_outputs_of_a_recurrent_network_are_units(kind: str, batch_first: bool, bidirectional: bool):
    torch.manual_seed(0)
    cell: Any = RECURRENT[kind](6, 3, batch_first=batch_first, bidirectional=bidirectional)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if not name.endswith("reverse"):
                parameter.zero_()

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.out(net.cell(x if batch_first else x.transpose(0, 1))[0])

    width = 6 if bidirectional else 3
    done = fit(Named(run, cell=cell, out=dense(1, width)), inputs(8, 5, 6), inputs(7, 5, 6), optimizer=still)
    assert done["net.cell"] == [True] * 3 + [False] * (width - 3)
    assert done.dead.activity["net.cell"].inputs == 7
    assert done.dead.activity["net.cell"].kinds == {"zero": 3}


def test_padding_of_packed_sequences_is_no_output():
    torch.manual_seed(0)
    cell = nn.RNN(1, 2, batch_first=True, nonlinearity="relu")
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.bias_ih_l0[0] = 3.0

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        packed, _ = net.cell(pack_padded_sequence(x, torch.arange(len(x), 0, -1), batch_first=True))
        return net.out(packed.data)

    done = fit(Named(run, cell=cell, out=dense(1, 2)), inputs(4, 5, 1), inputs(6, 5, 1), optimizer=still)
    assert done["net.cell"] == [True, True]  # 3 throughout, where a padded output would go on with 0
    assert done.dead.activity["net.cell"].kinds == {"constant": 1, "zero": 1}
    assert done.dead.activity["net.cell"].inputs == 6


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_is_watched_over_all_its_steps(cell: Any):
    torch.manual_seed(0)
    one = cell(6, 3)

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        state = None
        for step in x.unbind(1):
            state = net.cell(step, state)
        return net.out(state[0] if isinstance(state, tuple) else state)

    done = fit(Named(run, cell=one, out=dense(1, 3)), inputs(8, 5, 6), inputs(7, 5, 6))
    assert done["net.cell"] == [False] * 3
    assert done.dead.activity["net.cell"].inputs == 7


# Activation checkpointing


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("as_function", [True, False])
def test_what_is_computed_again_in_the_backward_pass_is_counted_once(reentrant: bool, as_function: bool):
    def part(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.out(functional.relu(net.a(x)) if as_function else net.act(net.a(x)))

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        x = net.first(x)
        return checkpoint(part, net, x, use_reentrant=reentrant) if torch.is_grad_enabled() else part(net, x)  # type: ignore[return-value]

    modules = {"a": dense(4, dead=1), "first": dense(6), "out": dense(1, 4)} | (
        {} if as_function else {"act": nn.ReLU()}
    )
    place = "net.out" if as_function else "net.act"
    for val in (None, inputs(7, 6, seed=1)):
        done = fit(Named(run, **modules), inputs(8, 6), val, dead=quiet(every_n_steps=1))
        activity = done.dead.activity[place]
        assert (activity.inputs, activity.dead) == (8 if val is None else 7, 1)


def test_frozen_parts_are_watched_like_others():
    frozen = mlp(6, 4, 4)
    set_(frozen[0], 1, bias=-100)
    frozen.requires_grad_(False).eval()
    with pytest.warns(UserWarning, match="in eval mode"):
        done = fit(nn.Sequential(frozen, nn.ReLU(), dense(1, 4)), inputs(8, 6), inputs(50, 6), size=16)
    assert [unit for unit, dead in enumerate(done["net.0.1"]) if dead] == [1]
