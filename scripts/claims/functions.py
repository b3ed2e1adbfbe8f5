"""Properties of the functions themselves, without networks and randomness."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra.utils
import torch
import yaml
from torch import nn

from claims.batched_training import hidden_activations, load_digits, make_mlps, train
from claims.claim import (
    Claim,
    Effort,
    Figure,
    Line,
    Panel,
    Result,
    Row,
    above,
    at_most,
    below,
    check_at_least,
    inside,
)
from claims.interval import exact_interval, mean_interval, mean_share_interval
from stormproof_train.activations import Maxout
from stormproof_train.initialization.mean_square import normal_grid

Function = Callable[[torch.Tensor], torch.Tensor]
CONF = Path(__file__).resolve().parents[2] / "conf" / "activation"
REACH, FAR, SMALL, FIRM = 20.0, 10.0, 1e-3, 0.1
GRID = torch.linspace(-REACH, REACH, 40001, dtype=torch.float64)
NAMED: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "Maxout": lambda: Maxout(2),
    "leaky ReLU": nn.LeakyReLU,
    "ELU": nn.ELU,
}
"""The six activations that the article lists in 3.2.1."""
LEAK = nn.LeakyReLU().negative_slope


def slope(function: Function, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(function(x).sum(), x)
    return slopes


def _at(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


def s_shape(effort: Effort) -> Result:
    slopes = slope(torch.sigmoid, GRID)
    rising = (torch.sigmoid(GRID).diff() > 0).double().mean().item()
    bends = slopes.diff().sign()
    turns = int((bends[1:] != bends[:-1]).sum())
    far = (slope(torch.sigmoid, _at(FAR)) / slope(torch.sigmoid, _at(0.0))).item()
    rows = [
        Row("share of the axis on which it increases", exact_interval(rising), check_at_least(1.0)),
        Row("inflection points", exact_interval(turns), inside(1, 1)),
        Row(f"slope at {FAR:g}, relative to that at 0", exact_interval(far), below(0.01), ".1e"),
        Row("largest slope", exact_interval(slopes.max().item())),
    ]
    shown = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "ReLU": torch.relu, "ELU": nn.functional.elu}
    shown["leaky ReLU, slope 0.1"] = lambda x: nn.functional.leaky_relu(x, 0.1)
    x = torch.linspace(-4, 4, 161, dtype=torch.float64)
    panels = [
        Panel("the functions", "input", "output", {name: Line(x, f(x).clamp(max=2)) for name, f in shown.items()}),
        Panel("their slopes", "input", "slope", {name: Line(x, slope(f, x)) for name, f in shown.items()}),
    ]
    return Result(rows, Figure("shapes", "Five functions of the article (cut off at 2) and their slopes", panels))


S_SHAPE = Claim(
    title="Sigmoid is S-shaped",
    sections="3.1.1",
    says="Sigmoid is an S-shaped curve.",
    experiment=f"The function and its slope are computed at {len(GRID):,} points from {-REACH:g} to {REACH:g}. "
    "S-shaped means that it increases everywhere, has one inflection point, and is flat at both ends.",
    measure=s_shape,
    why="A flat function is saturated: the gradient vanishes there. The largest slope is a quarter.",
)


def linear(effort: Effort) -> Result:
    scaled = max((torch.relu(c * GRID) - c * torch.relu(GRID)).abs().max().item() for c in (0.5, 2.0, 64.0))
    slopes = slope(torch.relu, GRID[GRID != 0])
    sides = len(slopes.unique())
    sums = []
    for seed in range(effort.seeds):
        x, y = torch.randn(2, 10_000, generator=torch.Generator().manual_seed(seed))
        sums.append((torch.relu(x + y) - torch.relu(x) - torch.relu(y)).abs().mean())
    rows = [
        Row("scaling", exact_interval(scaled), at_most(0.0), detail="largest |f(cx) − c f(x)| for c > 0"),
        Row("one slope on each side of 0", exact_interval(sides), at_most(2), detail="number of different slopes"),
        Row("addition", mean_interval(torch.stack(sums)), at_most(0.0), detail="mean |f(x + y) − f(x) − f(y)|"),
    ]
    return Result(rows)


LINEAR = Claim(
    title="ReLU is linear",
    sections="3.1.2",
    says="ReLU has linear properties.",
    experiment="A linear function preserves scaling and addition. Scaling is tested at the same points, addition with "
    "pairs of standard normal numbers.",
    measure=linear,
    depends_on="the property",
    why="It is linear on each side of 0. The kink at 0 makes it nonlinear.",
)


def formulas(effort: Effort) -> Result:
    x, negative = GRID, GRID.clamp(max=0)
    e = torch.exp
    pairs = {
        "leaky ReLU: ReLU with a small slope below 0": (nn.LeakyReLU()(x), torch.relu(x) + LEAK * negative),
        "ELU: ReLU with an exponential below 0": (nn.ELU()(x), torch.relu(x) + e(negative) - 1),
        "tanh: the hyperbolic tangent": (nn.Tanh()(x), (e(x) - e(-x)) / (e(x) + e(-x))),
        "softmax: exponentials, normalized": (nn.Softmax(0)(x), e(x) / e(x).sum()),
        "Maxout: maximum of several units": (
            Maxout(2)(torch.stack((x, -x), 1))[:, 0],
            torch.where(x > 0, x, -x),
        ),
    }
    return Result(
        [
            Row(name, exact_interval((function - formula).abs().max().item()), at_most(1e-12), ".1e")
            for name, (function, formula) in pairs.items()
        ]
    )


FORMULAS = Claim(
    title="The formulas",
    sections="3.1.3 – 3.1.6, 3.2.5",
    says="Leaky ReLU is ReLU with a small slope for negative values. ELU is ReLU with an exponential term. Tanh is the "
    "hyperbolic tangent, softmax is a normalized exponential, and Maxout combines several units into one output.",
    experiment="The functions of torch (for Maxout, of this project) are compared with the formulas. The rows contain "
    f"the largest difference over {len(GRID):,} points.",
    measure=formulas,
)


def elu_negative(effort: Effort) -> Result:
    z, weights = normal_grid((1,))
    (inputs, labels), _ = load_digits(effort.seeds)
    networks = make_mlps(effort.seeds, nn.ELU, (1, 8, 8), 10, width=32, depth=1)
    trained = train(networks, (inputs, labels), effort.steps(300))
    units = [hidden_activations(network, x) for network, x in zip(trained.each(), inputs, strict=True)]
    negative = torch.stack([(outputs < 0).double().mean() for outputs in units])
    elu, relu = nn.ELU(), nn.ReLU()
    return Result(
        [
            Row("smallest output", exact_interval(elu(GRID).min().item()), check_at_least(0.0)),
            Row(
                "share of outputs below 0, normal input",
                exact_interval((weights * (elu(z) < 0)).sum().item()),
                at_most(0.0),
                ".1%",
            ),
            Row(
                "share of hidden outputs below 0, trained on digits", mean_share_interval(negative), at_most(0.0), ".1%"
            ),
            Row("mean output, normal input", exact_interval((weights * elu(z)).sum().item())),
            Row("mean output of ReLU, normal input", exact_interval((weights * relu(z)).sum().item())),
        ]
    )


ELU_NEGATIVE = Claim(
    title="ELU prevents negative values",
    sections="3.1.4, 3.2.4",
    says="ELU adds an exponential term to ReLU so that the model has no negative values.",
    experiment="Outputs of ELU for inputs of both signs, and outputs of 32 hidden units that are trained on digits. "
    "The claim requires that no output is negative.",
    measure=elu_negative,
    why="The opposite is true: ReLU has no negative outputs, and the exponential term adds them. This moves the mean "
    "closer to 0 (Clevert et al. 2016).",
)


def elu_small(effort: Effort) -> Result:
    near = torch.linspace(-SMALL, SMALL, 2001, dtype=torch.float64)
    elu = nn.ELU()
    return Result(
        [
            Row(
                f"largest absolute output within {SMALL:g} of 0",
                exact_interval(elu(near).abs().max().item()),
                at_most(SMALL),
            ),
            Row(f"absolute output at {-FAR:g}", exact_interval(elu(_at(-FAR)).abs().item()), at_most(FIRM)),
            Row(f"slope at {-SMALL:g}", exact_interval(slope(elu, _at(-SMALL)).item())),
            Row(f"slope at {-FAR:g}", exact_interval(slope(elu, _at(-FAR)).item()), None, ".1e"),
        ]
    )


ELU_SMALL = Claim(
    title="ELU returns a very small value for small inputs and those near zero",
    sections="3.1.4",
    says="If the input is very small or near zero, ELU returns a very small value.",
    experiment=f"ELU near 0 and far below 0. A very small value is at most {FIRM:g}; near 0, it is at most the "
    "absolute value of the input.",
    measure=elu_small,
    depends_on="the meaning of small: near 0 or far below 0",
    why="Near 0, any function with slope 1 through the origin has this property, including ReLU. Far below 0, ELU "
    "approaches −α and its slope approaches 0.",
)


def tanh_range(effort: Effort) -> Result:
    wide = torch.cat((GRID.float(), torch.tensor([-torch.inf, -1e30, 1e30, torch.inf])))
    reached = GRID.float()[(torch.tanh(GRID.float()) == 1)].min().item()
    return Result(
        [
            Row("smallest output, float32", exact_interval(torch.tanh(wide).min().item()), check_at_least(-1.0)),
            Row("largest output, float32", exact_interval(torch.tanh(wide).max().item()), at_most(1.0)),
            Row("smallest input for which float32 gives 1", exact_interval(reached)),
            Row("distance from 1 there, float64", exact_interval(1 - torch.tanh(_at(reached)).item()), None, ".1e"),
        ]
    )


TANH_RANGE = Claim(
    title="Tanh lies in [−1, 1]",
    sections="3.1.5",
    says="The outputs of tanh are in [−1, 1].",
    experiment=f"Tanh at {len(GRID):,} points, at ±1e30 and at infinity, in two precisions.",
    measure=tanh_range,
    why="The bounds themselves are reached only by rounding and at infinity.",
)


def non_negative(effort: Effort) -> Result:
    z = torch.randn(10_000, 8, generator=torch.Generator().manual_seed(0))
    rows = [Row(name, exact_interval(make()(z).min().item()), check_at_least(0.0)) for name, make in NAMED.items()]
    lowest = [function(z).detach().min().item() for function in _words()]
    count = sum(low >= 0 for low in lowest)
    rows.append(Row(f"activations without negative outputs, of {len(lowest)} in this project", exact_interval(count)))
    return Result(rows)


def _words() -> Iterator[Function]:
    """The activations of ``conf/activation/``."""
    for file in sorted(CONF.glob("*.yaml")):
        config = yaml.safe_load(file.read_text())
        target = hydra.utils.get_object(config.pop("_target_"))
        yield target(**config).eval() if isinstance(target, type) else functools.partial(target, **config)


NON_NEGATIVE = Claim(
    title="Activations make outputs non-negative",
    sections="3.2.1",
    says="An activation makes the output of a neuron non-negative. Common ones are sigmoid, tanh, ReLU, Maxout, leaky "
    "ReLU and ELU.",
    experiment="The smallest output of each of the six activations for standard normal inputs must be at least 0.",
    measure=non_negative,
    of_all=True,
)


def leaky_slope(effort: Effort) -> Result:
    leaky = nn.LeakyReLU()
    wide = torch.cat((GRID, _at(-1e6), _at(1e6)))
    return Result(
        [
            Row("smallest slope", exact_interval(slope(leaky, wide).min().item()), above(0.0)),
            Row(
                f"slope at -1e6, relative to that at {-FAR:g}",
                exact_interval((slope(leaky, _at(-1e6)) / slope(leaky, _at(-FAR))).item()),
                above(0.5),
            ),
            Row("smallest slope of ReLU", exact_interval(slope(torch.relu, wide).min().item())),
            Row("smallest slope of ELU", exact_interval(slope(nn.ELU(), wide).min().item())),
            Row(
                f"factor of the gradient after {FAR:g} leaky units below 0",
                exact_interval(LEAK**FAR),
                None,
                ".1e",
            ),
        ]
    )


LEAKY_SLOPE = Claim(
    title="Leaky ReLU neither saturates nor loses the gradient entirely",
    sections="3.2.3",
    says="With its small slope for negative values, leaky ReLU neither saturates nor loses the gradient entirely.",
    experiment="The slope of torch's leaky ReLU from -1e6 to 1e6. It saturates if the slope decreases far from 0. It "
    "loses the gradient where the slope is 0.",
    measure=leaky_slope,
    why="After many negative units in a row, little of the gradient remains.",
)
