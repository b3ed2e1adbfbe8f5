"""Dormant units are given another start, as in Sokar et al. 2023, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small_fits import LIGHTNINGS_OWN, trainer
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from unit_fits import At, Named, Trained, batches, fit, inputs, mlp, quiet, set_

from stormproof import DeadNeuronDetector, resumable
from stormproof.units.redo import dormant

pytestmark = LIGHTNINGS_OWN
UNIT, STEP = 1, 2


class Net(Named):
    """Layers by name, put together by ``run``; by itself none of their units is dormant."""

    def __init__(self, run: Callable[[Any, torch.Tensor], torch.Tensor], **modules: nn.Module) -> None:
        super().__init__(run, **modules)
        for module in modules.values():
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                nn.init.ones_(module.bias)  # type: ignore[arg-type]


class Snapshot(pl.Callback):
    """What the weights, the optimizer's moments and the outputs are when step ``STEP`` is done."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step != STEP:
            return
        net = pl_module.net
        self.weights = {name: value.clone() for name, value in net.state_dict().items()}
        states = trainer.optimizers[0].state
        self.moments = {
            (name, key): value.clone()
            for name, parameter in net.named_parameters()
            for key, value in states[parameter].items()
            if torch.is_tensor(value) and value.shape == parameter.shape
        }
        net.eval()
        self.outputs = net(self.data)
        net.train()


def revived(net: nn.Module, data: torch.Tensor, layer: str, **options: Any) -> tuple[Snapshot, Snapshot, Any]:
    """Unit 1 of ``layer`` dies in the first step and is revived after the second."""
    before, after = Snapshot(data), Snapshot(data)
    dead = options.pop("dead", None) or quiet(revive=STEP, every_n_steps=1, dormant_at=0.0)
    kill = At(1, lambda module: set_(module.net.get_submodule(layer), UNIT, bias=-100.0))
    running = trainer(callbacks=[kill, before, dead, after], **{"max_steps": STEP, "max_epochs": -1} | options)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    running.fit(Trained(net, lambda parameters: optimizer), batches(data))
    return before, after, dead


IMAGES, TOKENS, ROWS = (2, 5, 5), (5, 6), (6,)
EVERY = slice(None)


def function_of(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.b(functional.relu(net.a(x)))


Changes = dict[str, Any]  # of each tensor that is changed, the entries
CASES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module], str, Changes, Changes]] = {
    "dense": (
        ROWS,
        lambda: Net(lambda net, x: net.b(net.act(net.a(x))), a=nn.Linear(6, 4), act=nn.ReLU(), b=nn.Linear(4, 2)),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "a function": (
        ROWS,
        lambda: Net(lambda net, x: net.b(functional.relu(net.a(x))), a=nn.Linear(6, 4), b=nn.Linear(4, 2)),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "dropout between": (
        ROWS,
        lambda: Net(
            lambda net, x: net.b(net.drop(functional.relu(net.a(x)))),
            a=nn.Linear(6, 4),
            drop=nn.Dropout(0.1),
            b=nn.Linear(4, 2),
        ),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "computed again in the backward pass": (
        ROWS,
        lambda: Net(
            lambda net, x: checkpoint(function_of, net, x, use_reentrant=False), a=nn.Linear(6, 4), b=nn.Linear(4, 2)
        ),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "tokens": (
        TOKENS,
        lambda: Net(lambda net, x: net.b(functional.relu(net.a(x))), a=nn.Linear(6, 4), b=nn.Linear(4, 2)),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "tokens, flattened": (
        TOKENS,
        lambda: Net(lambda net, x: net.b(functional.relu(net.a(x)).flatten(1)), a=nn.Linear(6, 4), b=nn.Linear(20, 2)),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, slice(UNIT, None, 4))},
    ),
    "two consumers of a module": (
        ROWS,
        lambda: Net(
            lambda net, x: net.heads(net.act(net.a(x))),
            a=nn.Linear(6, 4),
            act=nn.ReLU(),
            heads=Net(lambda net, x: net.b(x) + net.c(x), b=nn.Linear(4, 2), c=nn.Linear(4, 2)),
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"heads.b.weight": (EVERY, UNIT), "heads.c.weight": (EVERY, UNIT)},
    ),
    "two consumers of a function": (
        ROWS,
        lambda: Net(
            lambda net, x: net.heads(functional.relu(net.a(x))),
            a=nn.Linear(6, 4),
            heads=Net(lambda net, x: net.b(x) + net.c(x), b=nn.Linear(4, 2), c=nn.Linear(4, 2)),
        ),
        "net.heads.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"heads.b.weight": (EVERY, UNIT), "heads.c.weight": (EVERY, UNIT)},
    ),
    "convolutions": (
        IMAGES,
        lambda: Net(
            lambda net, x: net.b(net.act(net.a(x))).flatten(1),
            a=nn.Conv2d(2, 3, 3),
            act=nn.ReLU(),
            b=nn.Conv2d(3, 2, 3),
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "transposed convolutions": (
        IMAGES,
        lambda: Net(
            lambda net, x: net.b(net.act(net.a(x))).flatten(1),
            a=nn.ConvTranspose2d(2, 3, 3),
            act=nn.ReLU(),
            b=nn.ConvTranspose2d(3, 2, 3),
        ),
        "net.act",
        {"a.weight": (EVERY, UNIT), "a.bias": UNIT},
        {"b.weight": UNIT},
    ),
    "a convolution, flattened": (
        IMAGES,
        lambda: Net(
            lambda net, x: net.b(net.act(net.a(x)).flatten(1)), a=nn.Conv2d(2, 3, 3), act=nn.ReLU(), b=nn.Linear(27, 2)
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, slice(9, 18))},
    ),
    "a functional one, pooled and flattened": (
        IMAGES,
        lambda: Net(
            lambda net, x: net.b(functional.max_pool2d(functional.relu(net.a(x)), 2).flatten(1)),
            a=nn.Conv2d(2, 3, 2),
            b=nn.Linear(12, 2),
        ),
        "net.b",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, slice(4, 8))},
    ),
    "a convolution, flattened with its channels last": (
        IMAGES,
        lambda: Net(
            lambda net, x: net.b(net.act(net.a(x)).permute(0, 2, 3, 1).flatten(1)),
            a=nn.Conv2d(2, 3, 3),
            act=nn.ReLU(),
            b=nn.Linear(27, 2),
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, slice(UNIT, None, 3))},
    ),
    "channels that were averaged": (
        IMAGES,
        lambda: Net(
            lambda net, x: net.b(net.act(net.a(x)).mean((2, 3))), a=nn.Conv2d(2, 3, 3), act=nn.ReLU(), b=nn.Linear(3, 2)
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
    "a consumer without a bias": (
        ROWS,
        lambda: Net(
            lambda net, x: net.b(net.act(net.a(x))),
            a=nn.Linear(6, 4),
            act=nn.ReLU(),
            b=nn.Linear(4, 2, bias=False),
        ),
        "net.act",
        {"a.weight": UNIT, "a.bias": UNIT},
        {"b.weight": (EVERY, UNIT)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_its_own_weights_are_drawn_anew_and_those_that_take_it_are_zero(case: str):
    shape, make, place, drawn, zero = CASES[case]
    torch.manual_seed(0)
    before, after, dead = revived(make(), inputs(8, *shape), "a")
    assert dead.revived == {place: 1}
    for name, value in after.weights.items():
        changed = value != before.weights[name]
        if name in drawn:
            assert changed[drawn[name]].all()
            assert value[drawn[name]].abs().max() < 5  # where there was -100
            changed[drawn[name]] = False
        if name in zero:
            assert not value[zero[name]].any()
            changed[zero[name]] = False
        assert not changed.any()
    assert len(after.moments) == 2 * len(after.weights)  # Adam has two of each weight
    for (name, key), moment in after.moments.items():
        kept = torch.ones_like(moment, dtype=torch.bool)
        where = (drawn | zero).get(name)
        if where is not None:
            assert not moment[where].any()
            kept[where] = False
        assert torch.equal(moment[kept], before.moments[name, key][kept])
    assert torch.equal(after.outputs, before.outputs)


def test_the_channel_of_a_batch_norm_between_begins_anew():
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.b(net.act(net.norm(net.a(x)))),
        a=nn.Linear(6, 4),
        norm=nn.BatchNorm1d(4),
        act=nn.ReLU(),
        b=nn.Linear(4, 2),
    )
    before, after, dead = revived(net, inputs(8, 6), "norm")
    assert dead.revived == {"net.act": 1}
    for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        one, other = after.weights[f"norm.{name}"], before.weights[f"norm.{name}"]
        assert one[UNIT] == value != other[UNIT]
        assert torch.equal(one[[0, 2, 3]], other[[0, 2, 3]])
    assert not after.moments["norm.weight", "exp_avg_sq"][UNIT]
    assert torch.equal(after.outputs, before.outputs)


def test_the_momentum_of_sgd_is_forgotten_too():
    after = Snapshot(inputs(8, 6))
    kill = At(1, lambda module: set_(module.net[0], UNIT, bias=-100.0))
    running = trainer(callbacks=[kill, quiet(revive=STEP, dormant_at=0.0), after], max_steps=STEP, max_epochs=-1)
    net = mlp(6, 4, 2)
    running.fit(Trained(net, lambda parameters: torch.optim.SGD(parameters, 0.01, 0.9)), batches(inputs(8, 6)))
    momentum = {name: value for (name, _), value in after.moments.items()}
    assert not momentum["0.weight"][UNIT].any()
    assert not momentum["2.weight"][:, UNIT].any()
    assert momentum["0.weight"][0].any()


def test_what_is_drawn_has_the_deviation_of_the_beginning_and_no_two_layers_the_same():
    net = mlp(64, 64, 64, 64, 1)
    spread = float(net[0].weight.detach().std())  # type: ignore[union-attr,operator]

    def kill(module: Any) -> None:
        for layer in (0, 2, 4):
            set_(module.net[layer], slice(None), bias=-100, weight=3)

    fit(net, inputs(8, 64), None, At(1, kill), dead=quiet(revive=2))
    weights = [net[layer].weight.detach() for layer in (0, 2)]
    for weight in weights:
        assert float(weight.std()) == pytest.approx(spread, rel=0.05)
        assert float(weight.mean()) == pytest.approx(0, abs=4 * spread / 64)
    assert len({round(float(weight[0, 0]) / spread, 4) for weight in weights}) == 2


def test_a_bias_that_began_at_zero_begins_there_again():
    net = mlp(6, 4, 2)
    nn.init.zeros_(net[0].bias)  # type: ignore[arg-type]
    _, after, _ = revived(Net(lambda net, x: net.all(x), all=net), inputs(8, 6), "all.0")
    assert after.weights["all.0.bias"][UNIT] == 0


# What is dormant


@pytest.mark.parametrize(
    ("sizes", "share", "expected"),
    [
        ([0.0, 0.01, 1.0], 0.025, [True, False, False]),
        ([0.0, 0.008, 1.0], 0.025, [True, True, False]),
        ([0.0, 0.0], 0.025, [True, True]),
        ([0.0, 1e-9, 1.0], 0.0, [True, False, False]),
        ([float("nan"), 0.0, 1.0], 0.025, [False, False, False]),
    ],
)
def test_a_unit_is_dormant_by_its_share_of_the_layers_mean(sizes: list[float], share: float, expected: list[bool]):
    assert dormant(torch.tensor(sizes), share).tolist() == expected


def test_it_is_off_by_default():
    net = mlp(6, 4, 2)
    dead = DeadNeuronDetector(table=False)
    set_(net[0], UNIT, bias=-100)
    done = fit(net, inputs(16, 6), dead=dead)
    assert dead.revived == {}
    assert done.module.net[0].bias[UNIT] < -99  # type: ignore[index,union-attr,operator]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_it_is_done_at_every_multiple(every: int):
    done_at = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if pl_module.net[0].bias[UNIT] > -99:
                done_at.append(trainer.global_step)
                set_(pl_module.net[0], UNIT, bias=-100.0)

    net, dead = mlp(6, 4, 2), quiet(revive=every, dormant_at=0.0)
    kill = At(1, lambda module: set_(module.net[0], UNIT, bias=-100.0, weight=0.0))
    running = trainer(callbacks=[kill, dead, Note()])
    set_(net[0], slice(None), bias=3.0)
    running.fit(Trained(net, lambda parameters: torch.optim.SGD(parameters, lr=0.0)), batches(inputs(28, 6)))
    assert done_at == [step for step in range(2, 8) if step % every == 0]
    assert dead.revived == {"net.1": len(done_at)}


def test_with_accumulated_gradients_a_step_is_a_step():
    kill = At(1, lambda module: set_(module.net[0], UNIT, bias=-100.0))
    dead = quiet(revive=2, dormant_at=0.0)
    done = fit(mlp(6, 4, 2), inputs(16, 6), None, kill, dead=dead, accumulate_grad_batches=2)
    assert done.trainer.global_step == 2
    assert dead.revived == {"net.1": 1}


@pytest.mark.parametrize("every", [4, 5])
def test_two_optimizers_do_not_step_over_it(every: int):
    class Both(Trained):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.zero_grad()
                self.manual_backward(self.net(batch[0]).square().mean())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(self.net[0].parameters()), torch.optim.Adam(self.net[2].parameters())]  # type: ignore[index]

    dead = quiet(revive=every, dormant_at=0.0)  # all steps are even
    net = mlp(6, 4, 2)
    set_(net[0], slice(None), bias=3.0)  # no other one is silent by chance
    kill = At(2, lambda module: set_(module.net[0], UNIT, bias=-100.0))
    fit(Both(net), inputs(12, 6), None, kill, dead=dead)
    assert dead.revived == {"net.1": 1}


def test_it_goes_on_after_a_resume(tmp_path: Path):
    def run(*after: pl.Callback, ckpt_path: Any = None) -> tuple[DeadNeuronDetector, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        dead = quiet(revive=2, dormant_at=0.0)
        kills = [At(step, lambda module: set_(module.net[0], UNIT, bias=-100.0, weight=1.0)) for step in (1, 3)]
        running = trainer(callbacks=[*kills, dead, *after])
        module = Trained(mlp(6, 4, 2), torch.optim.Adam)
        running.fit(module, resumable(batches(inputs(24, 6)), seed=1), ckpt_path=ckpt_path)
        return dead, module.state_dict()

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    whole, weights = run(Save())
    resumed, resumed_weights = run(ckpt_path=tmp_path / "x.ckpt")
    assert whole.revived == resumed.revived == {"net.1": 2}
    assert whole.state_dict() == resumed.state_dict()
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)


def test_a_compiled_network_is_revived():
    torch._dynamo.reset()
    net: Any = torch.compile(mlp(6, 4, 2), backend="eager", fullgraph=True)
    kill = At(1, lambda module: set_(module.net._orig_mod[0], UNIT, bias=-100.0))
    done = fit(net, inputs(8, 6), inputs(4, 6), kill, dead=quiet(revive=2, dormant_at=0.0), num_sanity_val_steps=1)
    assert done.dead.revived == {"net.1": 1}
    torch._dynamo.reset()


# What it cannot


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def tied() -> nn.Module:
    net = Net(
        lambda net, x: net.c(net.b(net.act(net.a(x)))),
        a=nn.Linear(6, 6),
        act=nn.ReLU(),
        b=nn.Linear(6, 6),
        c=nn.Linear(6, 6),
    )
    net.c.weight = net.b.weight  # type: ignore[union-attr]
    return net


def frozen(layer: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Net(lambda net, x: net.b(net.act(net.a(x))), a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 2))
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
    "its output is added to what it takes": lambda: Net(
        lambda net, x: x + net.act(net.a(x)) + net.b(x), a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 6)
    ),
    "its output goes past the layer, too": lambda: Net(past, a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 6)),
    "a function's output goes past the layer, too": lambda: Net(past_function, a=nn.Linear(6, 6), b=nn.Linear(6, 6)),
    "something is added before it": lambda: Net(
        lambda net, x: net.b(net.act(net.a(x) + x)), a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 2)
    ),
    "the layer's output goes past it": lambda: Net(layer_past, a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 6)),
    "the layer is called for something else, too": lambda: Net(
        lambda net, x: net.b(net.act(net.a(x))) + net.a(x), a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 6)
    ),
    "a batch norm behind it": lambda: Net(
        lambda net, x: net.b(net.norm(net.act(net.a(x)))),
        a=nn.Linear(6, 6),
        act=nn.ReLU(),
        norm=nn.BatchNorm1d(6),
        b=nn.Linear(6, 2),
    ),
    "a layer norm behind it": lambda: Net(
        lambda net, x: net.b(net.norm(net.act(net.a(x)))),
        a=nn.Linear(6, 6),
        act=nn.ReLU(),
        norm=nn.LayerNorm(6),
        b=nn.Linear(6, 2),
    ),
    "weights computed from others": lambda: Net(
        lambda net, x: net.b(net.act(net.a(x))), a=weight_norm(nn.Linear(6, 6)), act=nn.ReLU(), b=nn.Linear(6, 2)
    ),
    "a layer of one's own before it": lambda: Net(
        lambda net, x: net.b(net.act(net.scale(net.a(x)))),
        a=nn.Linear(6, 6),
        scale=Scale(6),
        act=nn.ReLU(),
        b=nn.Linear(6, 2),
    ),
    "a layer of one's own behind it": lambda: Net(
        lambda net, x: net.scale(net.act(net.a(x))), a=nn.Linear(6, 6), scale=Scale(6), act=nn.ReLU()
    ),
    "units that are positions": lambda: Net(
        lambda net, x: net.b(net.act(net.a(x[:, None]).flatten(1))),
        a=nn.Conv1d(1, 3, 3),
        act=nn.ReLU(),
        b=nn.Linear(12, 2),
    ),
    "a frozen layer": frozen("a"),
    "a frozen consumer": frozen("b"),
    "weights of two layers": tied,
    "a consumer that takes others, too": lambda: Net(twice, a=nn.Linear(6, 6), act=nn.ReLU(), b=nn.Linear(6, 2)),
    "no consumer": lambda: Net(lambda net, x: net.act(net.a(x)), a=nn.Linear(6, 6), act=nn.ReLU()),
    "groups": lambda: Net(
        lambda net, x: net.b(net.act(net.a(x.unflatten(1, (2, 3))))),
        a=nn.Conv1d(2, 4, 1, groups=2),
        act=nn.ReLU(),
        b=nn.Conv1d(4, 2, 1),
    ),
    "a recurrent consumer": lambda: Net(
        lambda net, x: net.b(net.act(net.a(x[:, None])))[0],
        a=nn.Linear(6, 6),
        act=nn.ReLU(),
        b=nn.GRU(6, 2, batch_first=True),
    ),
    "half of it a gate": lambda: Net(
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
    for revive in (2, None):
        torch.manual_seed(1)
        net = REFUSED[case]()
        dead = quiet(revive=revive, every_n_steps=1, dormant_at=1e-30)
        running = trainer(callbacks=[At(1, kill), dead], max_epochs=3)
        module = Trained(net, torch.optim.Adam)
        if revive is None:
            running.fit(module, batches(inputs(8, 6)))
        else:
            with pytest.warns(UserWarning, match="its dormant units are not revived") as said:
                running.fit(module, batches(inputs(8, 6)))
            assert len([each for each in said if "are not revived" in str(each.message)]) == 1
        assert not sum(dead.revived.values())
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])
