"""Functions that networks fit with ReLU and without an activation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from claims.batched_training import Data, TrainedNetworks, hidden_activations, load_mnist1d, make_mlps, train
from claims.claim import Claim, Effort, Figure, Line, Panel, Result, Row, at_most, check_at_least
from claims.interval import exact_interval, mean_interval, mean_share_interval

WIDTH, DEPTH, STEPS, SAMPLES, NO_GAIN = 32, 2, 1000, 1000, 0.01
DEEP, DEEP_WIDTH, DEEP_STEPS = 3, 64, 1200
ON_A_LINE = {"|x|": torch.abs, "sin 3x": lambda x: torch.sin(3 * x)}


def _line(seeds: int, function: Callable[[torch.Tensor], torch.Tensor]) -> Data:
    x = 4 * torch.rand(seeds, SAMPLES, 1, generator=torch.Generator().manual_seed(1)) - 2
    return x, function(x)


def _quadrants(seeds: int, seed: int) -> Data:
    x = 2 * torch.rand(seeds, SAMPLES, 2, generator=torch.Generator().manual_seed(seed)) - 1
    return x, (x.prod(2) > 0).long()


def _explained(trained: TrainedNetworks, data: Data) -> torch.Tensor:
    """Returns the share of the variance that is explained, ``(seeds,)``."""
    x, y = data
    return (1 - (trained.predict(x) - y).square().mean((1, 2)) / y.var((1, 2), correction=0)).double()


def lacks_nonlinearity(effort: Effort) -> Result:
    seeds, steps = effort.seeds, effort.steps(STEPS)
    rows, panels = [], []
    grid = torch.linspace(-2, 2, 201)[:, None].expand(seeds, 201, 1)
    for name, function in ON_A_LINE.items():
        explained, lines = [], {"the function": Line(grid[0, :, 0], function(grid[0, :, 0]))}
        for activation_name, make in (("ReLU", nn.ReLU), ("no activation", nn.Identity)):
            trained = train(
                make_mlps(seeds, make, (1,), 1, WIDTH, DEPTH), _line(seeds, function), steps, 1e-2, loss=F.mse_loss
            )
            explained.append(_explained(trained, _line(seeds, function)))
            lines[activation_name] = Line(grid[0, :, 0], trained.predict(grid)[0, :, 0])
        panels.append(Panel(f"{name}, two hidden layers", "input", "output", lines))
        rows += [
            Row(
                f"{name}: variance explained, ReLU minus none",
                mean_interval(explained[0] - explained[1]),
                at_most(NO_GAIN),
                "points",
            ),
            Row(f"{name}: variance explained by ReLU", mean_interval(explained[0]), None, ".1%"),
        ]
    relu, none = (
        train(make_mlps(seeds, make, (2,), 2, WIDTH, DEPTH), _quadrants(seeds, 1), steps, 1e-2)
        for make in (nn.ReLU, nn.Identity)
    )
    test = _quadrants(seeds, 2)
    more = relu.accuracy(test) - none.accuracy(test)
    rows += [
        Row("XOR of two signs: test accuracy, ReLU minus none", mean_interval(more), at_most(NO_GAIN), "points"),
        Row("XOR of two signs: test accuracy of ReLU", mean_share_interval(relu.accuracy(test)), None, ".1%"),
        Row("linear pieces of a trained network on a line", mean_interval(_pieces(relu)), at_most(1)),
    ]
    return Result(
        rows, Figure("nonlinearity", "What two hidden layers fit, with ReLU and without an activation", panels)
    )


def _pieces(trained: TrainedNetworks) -> torch.Tensor:
    """Returns the number of linear pieces along a diagonal, ``(seeds,)``, from the patterns of active units."""
    x = torch.linspace(-1, 1, 20_001)[:, None] * torch.tensor([[1.0, 0.7]])
    counts = []
    for network in trained.each():
        on = hidden_activations(network, x) > 0
        counts.append(1 + int((on[1:] != on[:-1]).any(1).sum()))
    return torch.tensor(counts).double()


LACKS_NONLINEARITY = Claim(
    title="ReLU lacks nonlinearity",
    sections="3.2.2",
    says="Because it lacks nonlinearity, ReLU is not always suitable.",
    experiment=f"Networks of {DEPTH} layers of {WIDTH} units learn |x|, sin 3x and whether two numbers have the same "
    f"sign ({STEPS:,} steps of Adam), with ReLU and without any activation. The claim requires a gain of at most "
    f"{100 * NO_GAIN:g} point over no activation, and one linear piece. The explained variance is 1 minus the squared "
    "error divided by the variance. It is negative if a fit is worse than the mean.",
    measure=lacks_nonlinearity,
    why="A network with ReLU is piecewise linear, and approximates any continuous function with enough pieces (Leshno "
    "et al. 1993). It is unsuitable for other reasons: it restricts the output if it is the last layer, and its units "
    "can die.",
)


def purpose(effort: Effort) -> Result:
    seeds, (training, test) = effort.seeds, load_mnist1d(effort.seeds)
    shape, steps = (1, 40), effort.steps(DEEP_STEPS)
    relu, deep, single = (
        train(make_mlps(seeds, make, shape, 10, DEEP_WIDTH, depth, kind), training, steps)
        for make, depth, kind in ((nn.ReLU, DEEP, "auto"), (nn.Identity, DEEP, "orthogonal"), (nn.Identity, 0, "auto"))
    )
    accuracy = [networks.accuracy(test) for networks in (relu, deep, single)]
    return Result(
        [
            Row(
                "test accuracy, no activation minus ReLU",
                mean_interval(accuracy[1] - accuracy[0]),
                check_at_least(-NO_GAIN),
                "points",
            ),
            Row("test accuracy of ReLU", mean_share_interval(accuracy[0]), None, ".1%"),
            Row(f"test accuracy of {DEEP} layers without activation", mean_share_interval(accuracy[1]), None, ".1%"),
            Row("test accuracy of a linear model", mean_share_interval(accuracy[2]), None, ".1%"),
            Row(
                f"largest difference between the outputs of {DEEP} layers and of one matrix",
                exact_interval(_collapsed(deep)),
                None,
                ".1e",
            ),
        ]
    )


def _collapsed(trained: TrainedNetworks) -> float:
    """Returns the relative error if a network without activations is replaced by the product of its matrices."""
    network = trained.each()[0].double()
    x = torch.randn(100, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        offset = network(torch.zeros(1, 1, 40, dtype=torch.float64))
        outputs = network(x[:, None]) - offset
        matrix = torch.linalg.lstsq(x, outputs).solution
        return ((x @ matrix - outputs).abs().max() / outputs.abs().max()).item()


PURPOSE = Claim(
    title="The purpose of activations is to correct gradients",
    sections="3.2.1",
    says="Activations are needed because they correct vanishing and exploding gradients.",
    experiment=f"MNIST-1D, {DEEP} hidden layers of {DEEP_WIDTH} units, {DEEP_STEPS:,} steps of Adam. One network has "
    "ReLU, the other has no activation but orthogonal weights, which preserve gradients. The claim requires that "
    f"the accuracy of the second is at most {100 * NO_GAIN:g} point lower.",
    measure=purpose,
    why="Any number of layers without activation is one matrix. Activations make functions possible that are not "
    "linear.",
)
