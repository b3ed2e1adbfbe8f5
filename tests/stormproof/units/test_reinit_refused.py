"""Networks in which a unit's weights are not its alone: they are left as they are, and a warning says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from tests.stormproof.units.reinit_fits import NamedNet
from tests.stormproof.units.unit_fits import OnStep, TrainingModule, make_detector, make_inputs, make_loader
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def tied_net() -> nn.Module:
    net = NamedNet(
        lambda net, x: net.c(net.b(net.act(net.a(x)))),
        a=nn.Linear(6, 6),
        act=nn.ReLU(),
        b=nn.Linear(6, 6),
        c=nn.Linear(6, 6),
    )
    net.c.weight = net.b.weight  # type: ignore[union-attr]
    return net


def freeze_layer(layer: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = NamedNet(lambda net, x: net.b(net.act(net.a(x))), a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 2))
        net.get_submodule(layer).requires_grad_(False)
        return net

    return make


def twice(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.b(net.act(net.a(x))) + net.b(x)


def past(net: Any, x: torch.Tensor) -> torch.Tensor:
    h = net.act(net.a(x))
    return h + net.b(h)


def past_function(net: Any, x: torch.Tensor) -> torch.Tensor:
    h = functional.relu(net.a(x))
    return h + net.b(h)


def layer_past(net: Any, x: torch.Tensor) -> torch.Tensor:
    h = net.a(x)
    return net.b(net.act(h)) + h


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "its output is added to what it takes": lambda: NamedNet(
        lambda net, x: x + net.act(net.a(x)) + net.b(x), a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 6)
    ),
    "its output goes past the layer, too": lambda: NamedNet(past, a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 6)),
    "a function's output goes past the layer, too": lambda: NamedNet(
        past_function, a=nn.Linear(6, 6), b=nn.Linear(6, 6)
    ),
    "something is added before it": lambda: NamedNet(
        lambda net, x: net.b(net.act(net.a(x) + x)), a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 2)
    ),
    "the layer's output goes past it": lambda: NamedNet(
        layer_past, a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 6)
    ),
    "the layer is called for something else, too": lambda: NamedNet(
        lambda net, x: net.b(net.act(net.a(x))) + net.a(x), a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 6)
    ),
    "a batch norm behind it": lambda: NamedNet(
        lambda net, x: net.b(net.norm(net.act(net.a(x)))),
        a=nn.Linear(6, 6),
        act=nn.ReLU(),
        norm=nn.BatchNorm1d(6),
        b=nn.Linear(6, 2),
    ),
    "a layer norm behind it": lambda: NamedNet(
        lambda net, x: net.b(net.norm(net.act(net.a(x)))),
        a=nn.Linear(6, 6),
        act=nn.ReLU(),
        norm=nn.LayerNorm(6),
        b=nn.Linear(6, 2),
    ),
    "weights computed from others": lambda: NamedNet(
        lambda net, x: net.b(net.act(net.a(x))), a=weight_norm(nn.Linear(6, 6)), act=nn.ReLU(), b=nn.Linear(6, 2)
    ),
    "a layer of one's own before it": lambda: NamedNet(
        lambda net, x: net.b(net.act(net.scale(net.a(x)))),
        a=nn.Linear(6, 6),
        scale=Scale(6),
        act=nn.ReLU(),
        b=nn.Linear(6, 2),
    ),
    "a layer of one's own behind it": lambda: NamedNet(
        lambda net, x: net.scale(net.act(net.a(x))), a=nn.Linear(6, 6), scale=Scale(6), act=nn.ReLU()
    ),
    "units that are positions": lambda: NamedNet(
        lambda net, x: net.b(net.act(net.a(x[:, None]).flatten(1))),
        a=nn.Conv1d(1, 3, 3),
        act=nn.ReLU(),
        b=nn.Linear(12, 2),
    ),
    "a frozen layer": freeze_layer("a"),
    "a frozen consumer": freeze_layer("b"),
    "weights of two layers": tied_net,
    "a consumer that takes others, too": lambda: NamedNet(twice, a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 2)),
    "no consumer": lambda: NamedNet(lambda net, x: net.act(net.a(x)), a=nn.Linear(6, 6), act=nn.ReLU()),
    "groups": lambda: NamedNet(
        lambda net, x: net.b(net.act(net.a(x.unflatten(1, (2, 3))))),
        a=nn.Conv1d(2, 4, 1, groups=2),
        act=nn.ReLU(),
        b=nn.Conv1d(4, 2, 1),
    ),
    "a recurrent consumer": lambda: NamedNet(
        lambda net, x: net.b(net.act(net.a(x[:, None])))[0],
        a=nn.Linear(6, 6),
        act=nn.ReLU(),
        b=nn.GRU(6, 2, batch_first=True),
    ),
    "half of it a gate": lambda: NamedNet(
        lambda net, x: net.b(net.act(net.a(x))), a=nn.Linear(6, 8), act=nn.GLU(), b=nn.Linear(4, 2)
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_it_leaves_alone_and_says_so_once(case: str):
    def kill(module: Any) -> None:
        with torch.no_grad():
            for name, parameter in module.net.a.named_parameters():
                if "bias" in name:
                    parameter[[1, 5] if len(parameter) == 8 else 1] = -200

    ends = []
    for interval in (2, None):
        torch.manual_seed(1)
        net = REFUSED[case]()
        dead = make_detector(reinit_every_n_steps=interval, every_n_steps=1, dormant_threshold=1e-30)
        pl_trainer = make_trainer(callbacks=[OnStep(1, kill), dead], max_epochs=3)
        module = TrainingModule(net, torch.optim.Adam)
        if interval is None:
            pl_trainer.fit(module, make_loader(make_inputs(8, 6)))
        else:
            with pytest.warns(UserWarning, match="dormant units are not reinitialized") as records:
                pl_trainer.fit(module, make_loader(make_inputs(8, 6)))
            assert len([record for record in records if "are not reinitialized" in str(record.message)]) == 1
        assert not sum(dead.reinitialized.values())
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])
