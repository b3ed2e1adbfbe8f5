"""What the detector does not know, it says; and it never calls exact what it has guessed."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from stormproof.units.maxout_pieces import winning_pieces
from tests.stormproof.units.unit_fits import (
    TrainingModule,
    ValidatedModule,
    fit,
    make_detector,
    make_inputs,
    make_loader,
)
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_trainer

pytestmark = [
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing.*"),
]


class Net(nn.Module):
    """``forward`` over named parts."""

    def __init__(self, forward: Any, **parts: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def kill_unit(layer: Any, *units: int) -> Any:
    """``layer`` with units that give a large negative number for whatever it gets."""
    with torch.no_grad():
        layer.weight[list(units)] = 0
        layer.bias[list(units)] = -100
    return layer


UNREPORTED = {
    "heads split off a layer's units": Net(
        lambda net, x: net.out(net.relu(net.a(x).view(len(x), -1, 4, 8)).flatten(2)),
        a=nn.Linear(6, 32),
        relu=nn.ReLU(),
        out=nn.Linear(32, 2),
    ),
    "heads split off and moved": Net(
        lambda net, x: net.out(net.relu(net.a(x).view(len(x), -1, 4, 8).transpose(1, 2)).transpose(1, 2).flatten(2)),
        a=nn.Linear(6, 32),
        relu=nn.ReLU(),
        out=nn.Linear(32, 2),
    ),
    "weights of attention": Net(
        lambda net, x: net.out(net.relu(net.a(x) @ net.a(x).mT) @ x),
        a=nn.Linear(6, 8),
        relu=nn.Softmax(-1),
        out=nn.Linear(6, 2),
    ),
}


@pytest.mark.parametrize("case", UNREPORTED)
def test_a_dimension_that_cannot_be_told_is_said_and_nothing_is_counted_along_it(case: str):
    net = copy.deepcopy(UNREPORTED[case])
    with pytest.warns(UserWarning, match=r"net\.relu: dead units cannot be detected, because the unit dimension"):
        result = fit(net, make_inputs(8, 5, 6), make_inputs(7, 5, 6))
    assert "net.relu" not in result.dead.activity


def test_a_number_of_units_that_changes_is_refused():
    class Own(nn.Module):
        """A layer of which nobody knows how many units it has."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.weight)[:, : 3 + int(x[0, 0] > 0)]

    val = torch.cat([torch.full((4, 6), -1.0), torch.ones(4, 6)])
    net = Net(lambda net, x: net.relu(net.own(x)).sum(1, keepdim=True), own=Own(), relu=nn.ReLU())
    with pytest.warns(
        UserWarning, match=r"net\.relu: dead units cannot be detected, because the size of the unit dimension changes"
    ):
        result = fit(net, val, val, num_sanity_val_steps=0)
    assert result.dead.activity == {}


def test_channels_are_found_behind_a_transposition_into_as_many_positions():
    conv = kill_unit(nn.Conv1d(3, 16, 3, padding=1), 1, 5)
    net = Net(
        lambda net, x: net.out(net.relu(net.conv(x).transpose(1, 2))), conv=conv, relu=nn.ReLU(), out=nn.Linear(16, 2)
    )
    result = fit(net, make_inputs(8, 3, 16), make_inputs(7, 3, 16))
    assert result.dead.dead_units["net.relu"].nonzero().flatten().tolist() == [1, 5]


def test_each_of_two_branches_is_the_layers_that_makes_it():
    def both(net: Any, x: torch.Tensor) -> torch.Tensor:
        u, v = net.a(x), net.b(x)
        return net.out(net.ru(u) * net.rv(v))

    net = Net(
        both,
        a=kill_unit(nn.Linear(6, 8), 1, 2, 3),
        b=nn.Linear(6, 8),
        ru=nn.ReLU(),
        rv=nn.ReLU(),
        out=nn.Linear(8, 2),
    )
    activity = fit(net, make_inputs(8, 6), make_inputs(32, 6)).dead.activity
    assert (activity["net.ru"].layer, activity["net.rv"].layer) == ("net.a", "net.b")
    assert activity["net.ru"].dead >= 3


LOST = {
    "cat": lambda net, x: net.out(torch.cat([functional.relu(net.a(x)), x], 1)),
    "norm": lambda net, x: net.out(functional.layer_norm(functional.relu(net.a(x)), (8,)).repeat(1, 2)[:, :14]),
    "power": lambda net, x: net.out(torch.cat([functional.relu(net.a(x)) ** 2, x], 1)),
}


@pytest.mark.parametrize("case", LOST)
def test_a_function_that_no_layer_was_found_to_take_is_said(case: str):
    net = Net(LOST[case], a=nn.Linear(6, 8), out=nn.Linear(14, 2))
    with pytest.warns(UserWarning, match=r"relu after net\.a: dead units cannot be detected"):
        fit(net, make_inputs(8, 6), make_inputs(7, 6))


def test_what_comes_behind_the_last_layer_is_not_missed():
    net = Net(
        lambda net, x: torch.sigmoid(net.out(net.relu(net.a(x)))),
        a=nn.Linear(6, 8),
        relu=nn.ReLU(),
        out=nn.Linear(8, 2),
    )
    assert fit(net, make_inputs(8, 6), make_inputs(7, 6)).dead.activity.keys() == {"net.relu"}


@pytest.mark.parametrize(
    ("function", "told"), [(functional.relu6, True), (functional.hardsigmoid, True), (functional.relu, False)]
)
def test_the_largest_of_some_outputs_does_not_pass_for_all_of_them(function: Any, told: bool):
    conv = nn.Conv2d(1, 8, 3)
    with torch.no_grad():
        conv.weight.mul_(40)
        conv.bias.zero_()  # type: ignore[union-attr]
        conv.weight[3] = 0
        conv.bias[3] = -100  # type: ignore[index]
    net = Net(
        lambda net, x: net.out(functional.adaptive_max_pool2d(function(net.conv(x)), 1).flatten(1)),
        conv=conv,
        out=nn.Linear(8, 2),
    )
    val = make_inputs(7, 1, 12, 12)
    if told:
        with pytest.warns(UserWarning, match=r"after net\.conv: dead units cannot be detected"):
            assert fit(net, make_inputs(8, 1, 12, 12), val).dead.activity == {}
    else:
        assert fit(net, make_inputs(8, 1, 12, 12), val)["net.out"] == [unit == 3 for unit in range(8)]


def test_each_validation_loader_is_traced():
    class Heads(ValidatedModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.net(batch[0], dataloader_idx)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.net(batch[0], 0).square().mean()

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 8)
            self.heads = nn.ModuleList([nn.Linear(8, 2), nn.Linear(8, 2)])

        def forward(self, x: torch.Tensor, head: int) -> torch.Tensor:
            return self.heads[head](functional.relu(self.body(x)))

    dead = make_detector()
    loaders = [make_loader(make_inputs(7, 6)), make_loader(make_inputs(5, 6, seed=1))]
    make_trainer(callbacks=[dead]).fit(Heads(Two()), make_loader(make_inputs(8, 6)), loaders)
    assert {name: activity.inputs for name, activity in dead.activity.items()} == {"net.heads.0": 7, "net.heads.1": 5}


class Shift(nn.Module):
    """Of nobody's parameters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.arange(x.shape[-1]) % 2)


def test_what_prepares_the_data_or_makes_weights_has_no_units():
    layer = nn.Linear(6, 8)
    parametrize.register_parametrization(layer, "weight", Shift())
    net = nn.Sequential(Shift(), layer, nn.ReLU(), nn.Linear(8, 2))
    assert fit(net, make_inputs(8, 6), make_inputs(7, 6)).dead.activity.keys() == {"net.2"}


def test_an_activation_of_single_numbers_has_been_passed():
    net = Net(lambda net, x: net.sigmoid(net.a(x).squeeze(-1)), a=nn.Linear(6, 1), sigmoid=nn.Sigmoid())
    assert fit(net, make_inputs(8, 6), make_inputs(7, 6)).dead.activity == {}


def test_complex_numbers_have_no_extremes():
    net = Net(
        lambda net, x: net.b(torch.tanh(net.a(x.to(torch.complex64)))).abs(),
        a=nn.Linear(6, 8, dtype=torch.complex64),
        b=nn.Linear(8, 2, dtype=torch.complex64),
    )
    assert fit(net, make_inputs(8, 6), make_inputs(7, 6)).dead.activity == {}


class Copies(pl.Callback):
    """Copies and pickles the network while it is watched."""

    def __init__(self) -> None:
        self.copy: Any = None
        self.pickled = b""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.copy, self.pickled = copy.deepcopy(pl_module.net), pickle.dumps(pl_module.net)


@pytest.mark.slow
def test_a_copy_and_a_file_of_a_watched_network_are_of_the_network_alone(tmp_path: Path):
    copies = Copies()
    result = fit(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), make_inputs(8, 6), make_inputs(7, 6), copies
    )
    assert torch.equal(copies.copy(torch.ones(1, 6)), result.module.net(torch.ones(1, 6)))
    (tmp_path / "net.pkl").write_bytes(copies.pickled)
    lines = [
        "import pickle, sys, torch",
        "net = pickle.load(open('net.pkl', 'rb'))",
        "net(torch.ones(1, 6))",
        "assert not [name for name in sys.modules if name.startswith('stormproof')]",
    ]
    subprocess.run([sys.executable, "-c", "; ".join(lines)], cwd=tmp_path, check=True, timeout=100)


def test_a_network_among_the_hyperparameters_can_be_saved(tmp_path: Path):
    class Kept(TrainingModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.save_hyperparameters("net")

    keeper = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    pl_trainer = make_trainer(callbacks=[make_detector(), keeper], enable_checkpointing=True)
    pl_trainer.fit(Kept(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))), make_loader(make_inputs(8, 6)))
    assert (tmp_path / "last.ckpt").exists()


def test_a_unit_of_pieces_that_is_not_finite_is_not_dead():
    candidates = torch.tensor([[[float("nan"), 1.0], [2.0, 1.0]]])
    assert winning_pieces(candidates, dim=-1).tolist() == [[1.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize(("function", "told"), [(torch.sigmoid, True), (functional.relu, False)])
def test_padding_hides_a_constant_but_for_zero(function: Any, told: bool):
    def padded(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.out(functional.pad(function(net.conv(x)), (1, 1))).flatten(1)

    net = Net(padded, conv=kill_unit(nn.Conv1d(1, 4, 3), 2), out=nn.Conv1d(4, 2, 3))
    if told:
        with pytest.warns(UserWarning, match=r"sigmoid after net\.conv: dead units cannot be detected"):
            assert fit(net, make_inputs(8, 1, 9), make_inputs(7, 1, 9)).dead.activity == {}
    else:
        assert fit(net, make_inputs(8, 1, 9), make_inputs(7, 1, 9))["net.out"] == [False, False, True, False]


def test_steps_of_sequences_are_no_inputs():
    """Sequences of 15 steps, which come before the samples."""

    class StepsFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.relu, self.out = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.relu(self.a(x.transpose(0, 1))))

    activity = fit(StepsFirst(), make_inputs(8, 15, 6), make_inputs(7, 15, 6)).dead.activity["net.relu"]
    assert (activity.units, activity.inputs) == (8, 7)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_a_validation_alone_knows_what_is_dead_and_not_since_when(compiled: bool):
    torch.compiler.reset()
    net: Any = Net(
        lambda net, x: net.out(functional.relu(net.a(x))), a=kill_unit(nn.Linear(6, 8), 3), out=nn.Linear(8, 2)
    )
    dead = make_detector()
    module = ValidatedModule(torch.compile(net, backend="eager") if compiled else net)
    make_trainer(callbacks=[dead]).validate(module, make_loader(make_inputs(32, 6)), verbose=False)
    activity = dead.activity["net.out"]
    assert dead.dead_units["net.out"].nonzero().flatten().tolist() == [3]
    assert (activity.dead, activity.since_step, activity.dead_from_start, activity.exact) == (1, None, 0, True)
