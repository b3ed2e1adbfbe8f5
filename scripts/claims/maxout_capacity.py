"""Capacity and cost of Maxout compared with ReLU."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from claims.batched_training import Data, load_mnist1d, make_mlps, train
from claims.claim import Claim, Effort, Result, Row, above, at_most, below, check_at_least
from claims.interval import Interval, exact_interval, geometric_mean_interval, mean_interval, share_interval
from stormproof_train.activations import Maxout
from stormproof_train.models import MLP

PIECES, UNITS, STEPS, RATE, LITTLE = 2, 32, 1200, 2e-3, 0.01
SHALLOW, DEEP = 1, 4
FEW, HIT, MORE, HALF = 5, 0.01, 0.2, 0.5
MAKES: dict[str, Callable[[], nn.Module]] = {"ReLU": nn.ReLU, "Maxout": lambda: Maxout(PIECES)}


def parameters(name: str, width: int, depth: int, shape: tuple[int, ...] = (1, 40), outputs: int = 10) -> int:
    return sum(
        parameter.numel() for parameter in MLP(shape, outputs, MAKES[name], width=width, depth=depth).parameters()
    )


@cache
def width_alike(depth: int) -> int:
    """Returns the width at which ReLU has about as many parameters as 32 units of Maxout."""
    target = parameters("Maxout", UNITS, depth)
    return min(range(UNITS, 4 * UNITS), key=lambda width: abs(parameters("ReLU", width, depth) - target))


def _more_pieces(depth: int, alike: str, effort: Effort) -> Interval:
    width = UNITS if alike == "units" else width_alike(depth)
    return geometric_mean_interval(_pieces("Maxout", UNITS, depth, effort) / _pieces("ReLU", width, depth, effort))


@cache
def _accuracy(name: str, width: int, depth: int, effort: Effort) -> torch.Tensor:
    training, test = load_mnist1d(effort.seeds)
    networks = make_mlps(effort.seeds, MAKES[name], (1, 40), 10, width, depth)
    return train(networks, training, effort.steps(STEPS), RATE).accuracy(test)


def _gain(depth: int, alike: str, effort: Effort) -> torch.Tensor:
    width, effort = (UNITS if alike == "units" else width_alike(depth)), effort.times(5 if depth == SHALLOW else 3)
    return _accuracy("Maxout", UNITS, depth, effort) - _accuracy("ReLU", width, depth, effort)


def _pieces(name: str, width: int, depth: int, effort: Effort) -> torch.Tensor:
    """Returns the number of linear pieces before training along a random line of inputs, ``(seeds,)``."""
    counts = []
    for network in make_mlps(effort.seeds, MAKES[name], (1, 40), 10, width, depth):
        start, direction = torch.randn(2, 40)
        signal, chosen = start + torch.linspace(-3, 3, 50_001)[:, None] * direction, []
        with torch.no_grad():
            for layer in network.children():
                if isinstance(layer, Maxout):
                    chosen.append(signal.unflatten(1, (-1, layer.num_pieces)).argmax(2))
                if isinstance(layer, nn.ReLU):
                    chosen.append((signal > 0).long())
                signal = layer(signal)
        pattern = torch.cat(chosen, 1)
        counts.append(1 + int((pattern[1:] != pattern[:-1]).any(1).sum()))
    return torch.tensor(counts).double()


def _by_hand() -> tuple[float, float]:
    """Returns the largest errors on |x| of a Maxout unit with pieces x and −x, and of the best ReLU unit and offset."""
    x = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None]
    unit = Maxout(PIECES)(torch.cat((x, -x), 1))
    kinks = torch.linspace(-1, 1, 401, dtype=torch.float64)
    fits = [torch.cat(((sign * (x - kink)).relu(), torch.ones_like(x)), 1) for kink in kinks for sign in (1, -1)]
    best = min(((fit @ torch.linalg.lstsq(fit, x.abs()).solution - x.abs()).abs().max().item()) for fit in fits)
    return (unit - x.abs()).abs().max().item(), best


def expressive(effort: Effort) -> Result:
    error, relu_error = _by_hand()
    rows = [
        Row("|x| by one unit", exact_interval(error), at_most(0.0), detail="largest error, pieces x and −x"),
        Row(
            "|x| by one ReLU unit and an offset",
            exact_interval(relu_error),
            detail="largest error, best least-squares fit",
        ),
    ]
    x = 2 * torch.rand(effort.seeds, 500, 1, generator=torch.Generator().manual_seed(1)) - 1
    data: Data = (x, x.abs())
    trained = train(
        make_mlps(effort.seeds, MAKES["Maxout"], (1,), 1, 1, 1), data, effort.steps(STEPS), 1e-2, loss=F.mse_loss
    )
    is_exact = (trained.predict(x) - data[1]).abs().amax((1, 2)) < HIT
    rows.append(Row("|x| by one unit", share_interval(is_exact), None, ".0%", f"runs that find it to within {HIT:g}"))
    for alike in ("units", "parameters"):
        for depth in (SHALLOW, DEEP):
            description = f"as many {alike}, {depth} layer{'s' * (depth > 1)}"
            pieces, gain = _more_pieces(depth, alike, effort), mean_interval(_gain(depth, alike, effort))
            rows += [
                Row(f"pieces, {description}", pieces, above(1.0, MORE), detail="on a line, relative to ReLU"),
                Row(f"accuracy, {description}", gain, above(0.0, LITTLE), "points", "MNIST-1D, minus ReLU"),
            ]
    return Result(rows)


EXPRESSIVE = Claim(
    title="Maxout increases nonlinearity and expressiveness",
    sections="3.2.5",
    says="Maxout combines several units into one output, which increases the nonlinearity and expressiveness of a "
    "network to a degree.",
    experiment=f"|x| is learned by a single unit of {PIECES} pieces. Networks of {SHALLOW} and {DEEP} layers of "
    f"{UNITS} units are compared with ReLU with as many units, and with as many parameters (and more units). The "
    "rows contain the linear pieces along a line of inputs before training, and the test accuracy on MNIST-1D after "
    f"{STEPS:,} steps of Adam. Up to {MORE:.0%} more pieces and up to {100 * LITTLE:g} point of accuracy do not "
    "count.",
    measure=expressive,
    depends_on="the measure, and on the size of the ReLU network",
    why="A unit with two pieces selects one of two linear functions, while ReLU selects a linear function or 0. The "
    "number of pieces is the same, but Maxout can choose both functions.",
    left_open="Test accuracy shows what a network learns, which is less than it can express. More than two pieces per "
    "unit were not measured.",
)


def only_deep(effort: Effort) -> Result:
    x = torch.randn(effort.seeds, 2000, 4, generator=torch.Generator().manual_seed(1))
    convex: Data = (x, x.abs().sum(2, keepdim=True))
    steps, units = effort.steps(STEPS), 8
    maxout = parameters("Maxout", units, 1, (4,), 1)
    width = min(
        range(units, 4 * units),
        key=lambda candidate_width: abs(parameters("ReLU", candidate_width, 1, (4,), 1) - maxout),
    )
    explained = []
    for name, size in (("Maxout", units), ("ReLU", width)):
        trained = train(make_mlps(effort.seeds, MAKES[name], (4,), 1, size, 1), convex, steps, 1e-2, loss=F.mse_loss)
        explained.append(1 - (trained.predict(x) - convex[1]).square().mean((1, 2)) / convex[1].var((1, 2)))
    shallow = {alike: mean_interval(_gain(SHALLOW, alike, effort)) for alike in ("units", "parameters")}
    deep = _gain(DEEP, "parameters", effort)
    more = deep - _gain(SHALLOW, "parameters", effort)[: len(deep)]
    return Result(
        [
            *(
                Row(f"1 layer, as many {alike}", gain, at_most(LITTLE), "points", "MNIST-1D, test accuracy minus ReLU")
                for alike, gain in shallow.items()
            ),
            Row(
                "1 layer, a convex function",
                mean_interval(explained[0]),
                below(HALF),
                ".1%",
                "explained variance of Maxout",
            ),
            Row("1 layer, a convex function", mean_interval(explained[1]), None, ".1%", "explained variance of ReLU"),
            Row(
                "as many parameters",
                mean_interval(more),
                None,
                "points",
                f"gain over ReLU with {DEEP} layers minus gain with {SHALLOW}",
            ),
        ]
    )


ONLY_DEEP = Claim(
    title="Maxout is for deep networks only",
    sections="3.2.5",
    says="Maxout is generally used in deep networks only.",
    experiment="Networks with one hidden layer on MNIST-1D as above, and on |x₁| + … + |x₄|, which is convex. The "
    f"claim requires a gain over ReLU of at most {100 * LITTLE:g} point, and less than {HALF:.0%} of the variance of "
    "the convex function.",
    measure=only_deep,
    of_all=True,
    left_open="How often it is used, and where, was not measured.",
)


class _Operations(TorchDispatchMode):
    """Counts torch's operations that make a new tensor; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += not func.is_view
        return result


def _operations(module: nn.Module) -> int:
    inputs = torch.zeros(4, 8)
    with torch.no_grad(), _Operations() as counted:
        module(inputs)
    return counted.count


def complex_to_implement(effort: Effort) -> Result:
    forward = ast.parse(textwrap.dedent(inspect.getsource(Maxout.forward))).body[0]
    assert isinstance(forward, ast.FunctionDef)
    statements = len([statement for statement in forward.body if not isinstance(statement, ast.Expr)])
    shape = ((1, 40), 10)
    times = parameters("Maxout", UNITS, SHALLOW, *shape) / parameters("ReLU", UNITS, SHALLOW, *shape)
    return Result(
        [
            Row("statements of its forward pass", exact_interval(statements), check_at_least(FEW)),
            Row("operations that make a tensor", exact_interval(_operations(Maxout(PIECES))), check_at_least(FEW)),
            Row("operations of ReLU", exact_interval(_operations(nn.ReLU()))),
            Row("parameters relative to ReLU with as many units", exact_interval(times)),
        ]
    )


COMPLEX = Claim(
    title="Maxout is complex to implement",
    sections="3.2.5",
    says="Its implementation is rather complex.",
    experiment=f"The statements and torch operations of this project's Maxout are counted. Complex means {FEW} or more "
    "of either.",
    measure=complex_to_implement,
    why="It is a maximum over neighboring features. Its cost is parameters: each piece has its own weights.",
)
