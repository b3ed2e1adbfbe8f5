"""Which calls of a module count, and as what: in loops, copies, experts, frozen parts, and what is computed again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.stormproof.units.unit_fits import (
    NamedLayers,
    OnStep,
    ValidatedModule,
    constant_units,
    fit,
    make_detector,
    make_inputs,
    make_linear,
    mlp,
    set_constant_units,
    set_unit_weights,
    zero_lr_optimizer,
)
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = [*LIGHTNING_WARNING_FILTERS, pytest.mark.filterwarnings("ignore:.*consuming layer is unknown.*")]


def functional_loop(net: Any, x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        x = functional.relu(net.a(x))
    return net.out(x)


def test_a_unit_that_a_loop_uses_later_only_is_alive():
    """Calls of one layer are one place: its input in the first call, where it is no activation's output, is none."""
    net = NamedLayers(functional_loop, a=make_linear(6, dead=1), out=make_linear(1, 6))
    val = make_inputs(7, 6, seed=1)
    result = fit(net, make_inputs(8, 6), val)
    outputs = []
    x = val
    with torch.inference_mode():
        for _ in range(3):
            x = functional.relu(net.a(x))  # type: ignore[operator]
            outputs.append(x)
    assert result["net.a"] == constant_units(torch.cat(outputs[:2]), 1)
    assert result["net.out"] == constant_units(outputs[2], 1)
    assert result["net.a"][1]


def test_calls_that_come_later_are_those_of_the_same_place():
    """The batch that is traced makes one call, others make two: a unit may fire in the second alone."""

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        first = net.out(functional.relu(net.a(x)))
        return first if x[0, 0] > 0 else first + net.out(functional.relu(net.a(-x)))

    net = NamedLayers(run, a=nn.Linear(1, 2), out=nn.Linear(2, 1))
    with torch.no_grad():
        net.a.weight.copy_(torch.tensor([[1.0], [-1.0]]))  # type: ignore[operator,union-attr]
        net.a.bias.copy_(torch.tensor([-2.5, -1.0]))  # type: ignore[operator,union-attr]
    val = torch.tensor([1.0, 2.0, 1.0, 2.0, -2.0, -3.0, -2.0, -1.5])[:, None]
    assert fit(net, val, val[:4], optimizer=zero_lr_optimizer)["net.out"] == [True, True]
    assert fit(net, val, val, optimizer=zero_lr_optimizer)["net.out"] == [False, False]


def test_a_copy_of_the_network_is_another():
    """A teacher is copied from its student in the midst of training, hooks and all."""

    class Taught(ValidatedModule):
        def on_train_start(self) -> None:
            teacher = copy.deepcopy(self.net)
            with torch.no_grad():
                for parameter in teacher.parameters():
                    parameter.copy_(torch.ones_like(parameter))
            self.teacher = [teacher]

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.net(batch[0])
            self.teacher[0](batch[0])

    net = NamedLayers(
        lambda net, x: net.out(functional.relu(net.norm(net.b(net.act(net.a(x)))))),
        a=make_linear(4, dead=1),
        act=nn.ReLU(),
        b=make_linear(4, 4, dead=2),
        norm=nn.BatchNorm1d(4),
        out=make_linear(1, 4),
    )
    set_constant_units(net.b, 2, 0.0)
    result = fit(Taught(net, zero_lr_optimizer), make_inputs(8, 6), make_inputs(50, 6), size=16)
    assert [result[position].index(True) for position in ("net.act", "net.out")] == [1, 2]


def test_a_new_activation_is_no_less_so_for_its_outputs_being_several():
    class Halves(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x.chunk(2, -1)

    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return ()

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        first_half, second_half = net.halves(net.a(x))
        net.nothing(x)
        return net.out(first_half * second_half)

    net = NamedLayers(run, a=make_linear(8), halves=Halves(), nothing=Nothing(), out=make_linear(1, 4))
    assert fit(net, make_inputs(8, 6), make_inputs(7, 6)).dead.dead_units == {}


def test_an_expert_to_whom_no_input_comes_in_a_batch_is_judged_by_the_others():
    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.out(net.act(net.a(x[x[:, 0] > 10]))).sum() + net.b(x)

    net = NamedLayers(run, a=make_linear(4, dead=2), act=nn.ReLU(), out=make_linear(1, 4), b=make_linear(1))
    val = make_inputs(7, 6, seed=1)
    val[5:, 0] = 20
    train = val[[0, 6, 1, 5, 2, 3, 4]]
    result = fit(net, train, val)
    assert result["net.act"] == constant_units(functional.relu(net.a(val[5:])), 1)  # type: ignore[operator]
    assert result.dead.activity["net.act"].inputs == 2


def test_a_place_that_a_later_pass_does_not_see_is_known_no_longer():
    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.out(net.act(net.a(x))) if net.on else net.out(net.a(x))

    net: Any = NamedLayers(run, a=make_linear(4, dead=2), act=nn.ReLU(), out=make_linear(1, 4))
    net.on = True
    result = fit(
        net,
        make_inputs(8, 6),
        make_inputs(7, 6),
        OnStep(4, lambda module: setattr(module.net, "on", False)),
        max_epochs=3,
    )
    assert result.dead.dead_counts["net.act"] == [(2, 1)]
    assert result.dead.dead_units == {}
    assert result.dead.activity == {}


def test_an_activation_that_is_never_called_is_said_to_be_unknown():
    net = NamedLayers(lambda net, x: net.a(x), a=make_linear(1), act=nn.ReLU())
    with pytest.warns(UserWarning, match="net.act: dead units cannot be detected, because the module was not called"):
        result = fit(net, make_inputs(8, 6), make_inputs(7, 6))
    assert result.dead.dead_units == {}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("as_function", [True, False])
def test_what_is_computed_again_in_the_backward_pass_is_counted_once(reentrant: bool, as_function: bool):
    def part(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net.out(functional.relu(net.a(x)) if as_function else net.act(net.a(x)))

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        x = net.first(x)
        return checkpoint(part, net, x, use_reentrant=reentrant) if torch.is_grad_enabled() else part(net, x)  # type: ignore[return-value]

    modules = {"a": make_linear(4, dead=1), "first": make_linear(6), "out": make_linear(1, 4)} | (
        {} if as_function else {"act": nn.ReLU()}
    )
    position = "net.out" if as_function else "net.act"
    for val in (None, make_inputs(7, 6, seed=1)):
        result = fit(NamedLayers(run, **modules), make_inputs(8, 6), val, dead=make_detector(every_n_steps=1))
        activity = result.dead.activity[position]
        assert (activity.inputs, activity.dead) == (8 if val is None else 7, 1)


def test_frozen_parts_are_watched_like_others():
    frozen = mlp(6, 4, 4)
    set_unit_weights(frozen[0], 1, bias=-100)
    frozen.requires_grad_(False).eval()
    with pytest.warns(UserWarning, match="in eval mode"):
        result = fit(
            nn.Sequential(frozen, nn.ReLU(), make_linear(1, 4)), make_inputs(8, 6), make_inputs(50, 6), size=16
        )
    assert [unit for unit, dead in enumerate(result["net.0.1"]) if dead] == [1]
