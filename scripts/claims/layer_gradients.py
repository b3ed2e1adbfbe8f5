"""Change of the gradient from layer to layer in networks before training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import nn

from claims.batched_training import load_digits, make_mlps, train
from claims.claim import Claim, Effort, Figure, Line, Panel, Result, Row, above, curve, inside, outside
from claims.functions import NAMED
from claims.interval import geometric_mean_interval, mean_interval, mean_share_interval

DEPTH, WIDTH, SAMPLES, ALIKE = 20, 128, 32, 10.0
KEPT = ALIKE ** (1 / (DEPTH - 1))
NO_ACTIVATION = nn.Identity
TRAINED_DEPTH, TRAINED_WIDTH, TRAINED_STEPS = 10, 64, 400


@cache
def gradient_norms(make: Callable[[], nn.Module], initialization: str, seeds: int, gain: float = 1.0) -> torch.Tensor:
    """Returns gradient norms of a random loss at the outputs of the hidden linear layers, ``(seeds, layers)``."""
    norms = []
    for network in make_mlps(seeds, make, (WIDTH,), WIDTH, WIDTH, DEPTH, initialization):
        network.double()
        signal, outputs = torch.randn(SAMPLES, WIDTH, dtype=torch.float64), []
        for layer in network.children():
            signal = layer(signal)
            if isinstance(layer, nn.Linear):
                signal = gain * signal
                signal.retain_grad()
                outputs.append(signal)
        (signal * torch.randn_like(signal)).sum().backward()
        norms.append(torch.stack([output.grad.norm() for output in outputs[:-1]]))
    return torch.stack(norms)


def factors(make: Callable[[], nn.Module], initialization: str, seeds: int, gain: float = 1.0) -> torch.Tensor:
    """Returns the factor of the gradient per layer in the backward pass, ``(seeds,)``: a geometric mean over layers."""
    norms = gradient_norms(make, initialization, seeds, gain)
    return (norms[:, 0] / norms[:, -1]) ** (1 / (DEPTH - 1))


def _curve(make: Callable[[], nn.Module], initialization: str, seeds: int, gain: float = 1.0) -> Line:
    norms = gradient_norms(make, initialization, seeds, gain)
    means = [geometric_mean_interval(norm_ratios) for norm_ratios in (norms / norms[:, -1:]).unbind(1)]
    return curve(range(1, DEPTH + 1), means)


EACH_LAYER = (
    f"Networks of {DEPTH} layers of {WIDTH} units before training, {SAMPLES} normal samples, a random loss. The rows "
    "contain the factor of the gradient per layer in the backward pass. The gradient is preserved if the norms of the "
    f"first and last layer differ by at most a factor of {ALIKE:g}, which is {1 / KEPT:.3f} to {KEPT:.3f} per layer."
)


def without_activation(effort: Effort) -> Result:
    settings: list[tuple[str, str, float]] = [
        ("weights of torch", "torch", 1.0),
        ("weights of auto", "auto", 1.0),
        ("orthogonal weights", "orthogonal", 1.0),
        ("weights of auto, halved", "auto", 0.5),
        ("weights of auto, doubled", "auto", 2.0),
    ]
    rows = [
        Row(name, geometric_mean_interval(factors(NO_ACTIVATION, kind, effort.seeds, gain)), outside(1 / KEPT, KEPT))
        for name, kind, gain in settings
    ]
    panels = [
        Panel(
            "no activation",
            "layer",
            "gradient norm, last layer = 1",
            {name: _curve(NO_ACTIVATION, kind, effort.seeds, gain) for name, kind, gain in settings},
            yscale="log",
        )
    ]
    for kind, title in (("auto", "weights of auto"), ("torch", "weights of torch")):
        curves = {name: _curve(make, kind, effort.seeds) for name, make in NAMED.items()}
        panels.append(Panel(title, "layer", "gradient norm, last layer = 1", curves, yscale="log"))
    return Result(rows, Figure("depth", f"Gradient norm by layer, {DEPTH} layers, before training", panels))


WITHOUT_ACTIVATION = Claim(
    title="Without activations, gradients vanish or explode",
    sections="3.2.1",
    says="Without an activation, each layer passes on the size of its input, so that gradients may vanish or explode.",
    experiment=EACH_LAYER,
    measure=without_activation,
    depends_on="the scale of the weights, not on the activation",
)


def eliminate(effort: Effort) -> Result:
    rows = [
        Row(
            f"{name}, weights of {kind}",
            geometric_mean_interval(factors(make, kind, effort.seeds)),
            inside(1 / KEPT, KEPT),
        )
        for kind in ("auto", "torch")
        for name, make in NAMED.items()
    ]
    return Result(rows)


ELIMINATE = Claim(
    title="Activations eliminate vanishing and exploding gradients",
    sections="3.2.1",
    says="An activation corrects this and eliminates vanishing and exploding gradients.",
    experiment=EACH_LAYER,
    measure=eliminate,
    of_all=True,
    why="Sigmoid itself is a cause. With weights that preserve the signal, its gradient has a factor of "
    "E[φ²]^-½ E[φ'²]^½ per layer, at any width. The others need weights of the right scale, as does a network without "
    "activations.",
)


def _suppresses(make: Callable[[], nn.Module], name: str, effort: Effort) -> Result:
    rows = []
    for kind in ("auto", "torch"):
        own_factors, sigmoid = (factors(activation, kind, effort.seeds) for activation in (make, nn.Sigmoid))
        rows.append(
            Row(
                f"factor relative to sigmoid, weights of {kind}",
                geometric_mean_interval(own_factors / sigmoid),
                above(1.0),
            )
        )
    more = _accuracies(make, effort) - _accuracies(nn.Sigmoid, effort)
    rows.append(
        Row(
            f"test accuracy minus accuracy of sigmoid, {TRAINED_DEPTH} layers",
            mean_interval(more),
            above(0.0),
            "points",
        )
    )
    rows += [
        Row(
            f"factor of {name} per layer, weights of {kind}", geometric_mean_interval(factors(make, kind, effort.seeds))
        )
        for kind in ("auto", "torch")
    ]
    return Result([*rows, Row(f"test accuracy of {name}", mean_share_interval(_accuracies(make, effort)), None, ".1%")])


@cache
def _accuracies(make: Callable[[], nn.Module], effort: Effort) -> torch.Tensor:
    training, test = load_digits(effort.seeds)
    networks = make_mlps(effort.seeds, make, (1, 8, 8), 10, TRAINED_WIDTH, TRAINED_DEPTH)
    return train(networks, training, effort.steps(TRAINED_STEPS)).accuracy(test)


AND_TRAINED = (
    f"Factors are those of the gradient per layer in networks of {DEPTH} layers of {WIDTH} units before training. "
    f"Accuracies are those of networks of {TRAINED_DEPTH} layers of {TRAINED_WIDTH} units on digits, after "
    f"{TRAINED_STEPS} steps of Adam with weights of `auto`. To a degree means better than sigmoid with both "
    "initializations."
)

RELU_SUPPRESSES = Claim(
    title="ReLU suppresses vanishing gradients to a degree and performs well",
    sections="3.2.2",
    says="ReLU suppresses vanishing gradients to a degree, and performs well at the same time.",
    experiment=AND_TRAINED,
    measure=partial(_suppresses, nn.ReLU, "ReLU"),
    why="With weights that are too small for ReLU, such as torch's defaults, its gradient vanishes too.",
)

ELU_SUPPRESSES = Claim(
    title="ELU suppresses vanishing gradients to a degree",
    sections="3.1.4",
    says="Because it returns very small values, ELU suppresses vanishing gradients to a degree.",
    experiment=AND_TRAINED,
    measure=partial(_suppresses, nn.ELU, "ELU"),
    why="The reason is not its small values but its slope, which is 1 above 0 and near 1 just below 0. Far below 0, "
    "its gradient vanishes.",
)
