"""Compiled networks: no break in the graph, and no silence where the hooks are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from stormproof import MaxoutPieces
from tests.stormproof.units.unit_fits import (
    ValidatedModule,
    fit,
    make_detector,
    make_inputs,
    make_loader,
    mlp,
    set_unit_weights,
)
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_trainer

pytestmark = [pytest.mark.slow, *LIGHTNING_WARNING_FILTERS]
NO_SANITY = "the network is compiled and there was no sanity check"
OPTIONS = {"backend": "eager", "fullgraph": True}


@pytest.fixture(autouse=True)
def _compiles_afresh() -> Any:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # type: ignore[attr-defined]
    yield
    torch._dynamo.reset()


def breaks() -> dict[str, int]:
    return dict(torch._dynamo.utils.counters["graph_break"])  # type: ignore[attr-defined]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 1)
        set_unit_weights(self.a, 1, bias=-100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(functional.relu(self.a(x)))


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pieces = MaxoutPieces()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pieces(x.unflatten(-1, (-1, 2))).amax(-1)


class Own(nn.Module):
    """A network whose class is its user's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = dense()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def dense() -> nn.Sequential:
    net = mlp(6, 4, 1)
    set_unit_weights(net[0], 1, bias=-100)
    return net


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(16, 1)
    )
    set_unit_weights(net[1], 1, weight=0)
    set_unit_weights(net[2], 1, bias=-1)
    return net


def pieces() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), Maxout(), nn.Linear(4, 1))
    set_unit_weights(net[0], 1, bias=-100)
    return net


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "modules": (dense, "net.1"),
    "convolutions": (convolutions, "net.3"),
    "pieces": (pieces, "net.1.pieces"),
    "functions": (Functional, "net.b"),
}


@pytest.mark.parametrize(("kind", "every"), [("modules", 2), ("convolutions", 1), ("pieces", 1), ("functions", 1)])
def test_units_are_the_same_as_of_a_network_that_is_not_compiled(kind: str, every: int):
    make, position = NETWORKS[kind]
    fits = []
    for compiled in (True, False):
        torch.manual_seed(0)
        net = torch.compile(make(), **OPTIONS) if compiled else make()  # type: ignore[call-overload]
        dead = make_detector(every_n_steps=every)
        fits.append(fit(net, make_inputs(16, 6), make_inputs(7, 6), dead=dead, num_sanity_val_steps=1))
    fitted, plain = fits
    assert fitted[position][1]
    assert fitted.dead.activity == plain.dead.activity
    assert fitted.dead.dead_counts == plain.dead.dead_counts
    assert not breaks()


def test_its_weights_are_the_same_as_without_the_detector():
    ends = []
    for callbacks in ([make_detector(every_n_steps=1)], []):
        torch._dynamo.reset()
        torch.manual_seed(0)
        module = ValidatedModule(torch.compile(Functional(), **OPTIONS))  # type: ignore[call-overload]
        pl_trainer = make_trainer(callbacks=callbacks, num_sanity_val_steps=1)
        pl_trainer.fit(module, make_loader(make_inputs(8, 6)), make_loader(make_inputs(8, 6)))
        ends.append(module.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def in_place() -> nn.Module:
    net = Own()
    net.compile(**OPTIONS)
    return net


def method() -> nn.Module:
    net = Own()
    net.forward = torch.compile(net.forward, **OPTIONS)  # type: ignore[call-overload]
    return net


@pytest.mark.parametrize("make", [in_place, method])
def test_a_network_may_be_compiled_in_place(make: Callable[[], nn.Module]):
    result = fit(make(), make_inputs(8, 6), make_inputs(8, 6), num_sanity_val_steps=1)
    assert result["net.layers.1"][1]
    assert not breaks()


def test_a_function_may_be_compiled_that_nobody_can_tell():
    """It is in no module: what is traced is run as it is written."""
    wise = torch.compile(lambda layer, x: functional.relu(layer(x)), **OPTIONS)  # type: ignore[call-overload]

    class Uses(Functional):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(wise(self.a, x))

    result = fit(Uses(), make_inputs(8, 6), make_inputs(8, 6))
    assert result["net.b"][1]
    assert not breaks()


@pytest.mark.parametrize(("make", "place"), [(dense, "net.1"), (Functional, "net.b")])
def test_a_lightning_module_may_be_compiled_as_a_whole(make: Callable[[], nn.Module], place: str):
    dead, module = make_detector(), ValidatedModule(make())
    pl_trainer = make_trainer(callbacks=[dead], num_sanity_val_steps=1)
    pl_trainer.fit(
        torch.compile(module, backend="eager"), make_loader(make_inputs(8, 6)), make_loader(make_inputs(8, 6))
    )
    assert dead.dead_units[place].tolist()[1]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torch.compile(dense(), **OPTIONS), {"net.1"}),  # type: ignore[call-overload]
        (lambda: torch.compile(Functional(), **OPTIONS), set()),  # type: ignore[call-overload]
        (method, {"net.layers.1"}),
        (in_place, {"net.layers.1"}),
    ],
    ids=["modules", "functions", "method", "in place"],
)
def test_without_a_sanity_check_it_says_that_functions_are_not_seen(make: Callable[[], Any], expected: set[str]):
    net = make()
    with pytest.warns(UserWarning, match=NO_SANITY):
        result = fit(net, make_inputs(8, 6), make_inputs(8, 6))
    assert set(result.dead.dead_units) == expected


@pytest.mark.parametrize(
    ("make", "place", "sanity"), [(dense, "net.1", 0), (dense, "net.1", 2), (Functional, "net.b", 2)]
)
def test_a_network_that_was_called_before_is_said_to_be_unknown(make: Any, place: str, sanity: int):
    """It keeps no hooks: of none of its units is it said that they live."""
    module = ValidatedModule(torch.compile(make(), **OPTIONS))  # type: ignore[call-overload]
    make_trainer().fit(module, make_loader(make_inputs(8, 6)), make_loader(make_inputs(8, 6)))
    dead = make_detector()
    pl_trainer = make_trainer(callbacks=[dead], num_sanity_val_steps=sanity)
    no_sanity = nullcontext() if sanity else pytest.warns(UserWarning, match=NO_SANITY)
    with no_sanity, pytest.warns(UserWarning, match=f"{place}: .* the module was not called"):
        pl_trainer.fit(module, make_loader(make_inputs(8, 6)), make_loader(make_inputs(8, 6)))
    assert dead.dead_units == {}
