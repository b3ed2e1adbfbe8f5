"""Continuity of the error as a function of the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn
from torch.func import functional_call, vmap

from claims.batched_training import load_digits, make_mlps
from claims.claim import Claim, Effort, Figure, Line, Panel, Result, Row, above, below
from claims.interval import geometric_mean_interval
from stormproof_train.activations import activation_factory

COARSE, FINER, WIDTH, SAMPLES = 64, 64, 16, 32
CONTINUOUS = 0.25


def step(x: torch.Tensor) -> torch.Tensor:
    """1 above 0, else 0."""
    return (x > 0).to(x.dtype)


SIGNED: dict[str, Callable[[], nn.Module]] = {
    "none (identity)": nn.Identity,
    "tanh": nn.Tanh,
    "leaky ReLU": nn.LeakyReLU,
    "ELU": nn.ELU,
}
NEVER_NEGATIVE: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "ReLU": nn.ReLU,
    "step function": activation_factory(lambda: step),
}


def losses(make: Callable[[], nn.Module], seeds: int) -> torch.Tensor:
    """Returns the loss along a straight line in the space of all weights, ``(seeds, points)``."""
    (images, labels), _ = load_digits(seeds)
    way = torch.linspace(0, 1, COARSE * FINER + 1, dtype=torch.float64)
    lines = []
    for seed, network in enumerate(make_mlps(seeds, make, (1, 8, 8), 10, WIDTH, 1, "torch")):
        loss = _along_a_line(network.double(), images[seed, :SAMPLES].double(), labels[seed, :SAMPLES])
        lines.append(vmap(loss, chunk_size=512)(way))
    return torch.stack(lines)


def _along_a_line(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns the loss as a function of the distance from the weights in a random direction."""
    weights = {name: value.detach() for name, value in network.named_parameters()}
    aims = {name: torch.randn_like(value) * value.std() for name, value in weights.items()}

    def loss(t: torch.Tensor) -> torch.Tensor:
        moved_weights = {name: value + t * aims[name] for name, value in weights.items()}
        return F.cross_entropy(functional_call(network, moved_weights, (images,)), labels)

    return loss


def continuity(effort: Effort) -> Result:
    rows, curves = [], {}
    for name, make in (NEVER_NEGATIVE | SIGNED).items():
        line = losses(make, effort.seeds)
        jumps = [line[:, ::every].diff(dim=1).abs().amax(1) for every in (1, FINER)]
        need = below(CONTINUOUS) if name in NEVER_NEGATIVE else above(CONTINUOUS)
        sign = "never negative" if name in NEVER_NEGATIVE else "also negative"
        rows.append(Row(f"{name}, {sign}", geometric_mean_interval(jumps[0] / jumps[1]), need))
        if name in {"sigmoid", "step function", "tanh"}:
            shown = line[0, : COARSE * FINER // 16]
            curves[name] = Line(torch.linspace(0, 1 / 16, len(shown)), shown - shown[0])
    panel = Panel("", "way along the line", "change of the loss", curves)
    return Result(
        rows, Figure("continuity", "The loss of one network along a line in the space of its weights", [panel])
    )


CONTINUITY = Claim(
    title="Non-negative outputs ensure that the error is continuous",
    sections="3.2.1",
    says="By making outputs non-negative, an activation ensures that the error is continuous in later computations.",
    experiment=f"The loss of {SAMPLES} digits along a random line in the space of all weights, at {COARSE} points "
    f"and at {FINER} times as many. The rows contain the largest change between neighbors, relative to the coarse "
    f"points. It approaches 1/{FINER} for a continuous loss and remains near 1 for a loss with jumps. The claim "
    f"requires less than {CONTINUOUS:g} for non-negative activations, and more for the others.",
    measure=continuity,
    of_all=True,
    why="The error is continuous where the activation is continuous, whatever its sign, and without activations too.",
)
