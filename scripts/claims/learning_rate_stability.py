"""Stability of training with ReLU, leaky ReLU and ELU over learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import nn

from claims.batched_training import TrainedNetworks, load_digits, make_mlps, train
from claims.claim import Claim, Effort, Figure, Line, Panel, Requirement, Result, Row, above, below, curve
from claims.interval import (
    Interval,
    bootstrap_interval,
    geometric_mean_interval,
    share_difference_interval,
    share_interval,
)

WIDTH, DEPTH, STEPS, MOMENTUM, LAST = 32, 6, 300, 0.9, 50
RATES = (0.003, 0.01, 0.03, 0.06, 0.1)
SAFE = RATES[:3]
FEW, LITTLE = 0.05, 0.2
NULL = math.log(10)
MAKES: dict[str, Callable[[], nn.Module]] = {"ReLU": nn.ReLU, "leaky ReLU": nn.LeakyReLU, "ELU": nn.ELU}


@cache
def train_at_rate(name: str, rate: float, effort: Effort) -> TrainedNetworks:
    networks = make_mlps(effort.seeds, MAKES[name], (1, 8, 8), 10, WIDTH, DEPTH)
    return train(networks, load_digits(effort.seeds)[0], effort.steps(STEPS), rate, MOMENTUM)


def _final(name: str, rate: float, effort: Effort) -> torch.Tensor:
    """Returns the mean loss of the last steps, ``(seeds,)``. Not a number counts as infinite."""
    return train_at_rate(name, rate, effort).losses[:, -LAST:].mean(1).nan_to_num(torch.inf)


def _failed(name: str, effort: Effort) -> torch.Tensor:
    """Returns which runs end above 0.95 times the loss of guessing, ``(learning rates x seeds,)``."""
    return torch.cat([_final(name, rate, effort) > 0.95 * NULL for rate in RATES])


def _final_logs(name: str, effort: Effort) -> torch.Tensor:
    """Returns final log losses, ``(seeds, safe learning rates)``."""
    return torch.stack([_final(name, rate, effort).log() for rate in SAFE], 1)


def _ratio_of_spreads(runs: torch.Tensor) -> torch.Tensor:
    """Returns the ratio of standard deviations over seeds, from runs ``(…, seeds, learning rates, 2)``."""
    spreads = runs.std(-3).log()
    return (spreads[..., 0] - spreads[..., 1]).mean(-1).exp()


def _spread(name: str, reference: str, effort: Effort) -> Interval:
    runs = torch.stack([_final_logs(activation, effort) for activation in (name, reference)], 2)
    return bootstrap_interval(_ratio_of_spreads, runs[runs.isfinite().all(2).all(1)])


def _roughness(name: str, effort: Effort) -> torch.Tensor:
    """Returns the mean change of the log gradient norm from step to step, ``(seeds,)``."""
    norms = torch.stack([train_at_rate(name, rate, effort).gradient_norms for rate in SAFE])
    return norms.log().diff(dim=2).abs().mean((0, 2))


def _against_relu(name: str, steadier: bool, effort: Effort) -> Result:
    effort = effort.times(6)

    def need(of: float, margin: float) -> Requirement:
        return below(of, margin) if steadier else above(of, margin)

    fewer = share_difference_interval(_failed(name, effort), _failed("ReLU", effort))
    rougher = geometric_mean_interval(_roughness(name, effort) / _roughness("ReLU", effort))
    higher = geometric_mean_interval((_final_logs(name, effort) - _final_logs("ReLU", effort)).mean(1).exp())
    rows = [
        Row("share of failed runs, minus share of ReLU", fewer, need(0.0, FEW), "points"),
        Row("spread of the final loss, relative to ReLU", _spread(name, "ReLU", effort), need(1.0, LITTLE)),
        Row("roughness of the gradient norm, relative to ReLU", rougher, need(1.0, LITTLE)),
        Row("final training loss, relative to ReLU", higher, None if steadier else need(1.0, LITTLE)),
    ]
    rows += [
        Row(f"failed runs of {activation}", share_interval(_failed(activation, effort)), None, ".1%")
        for activation in ("ReLU", name)
    ]
    return Result(rows, None if steadier else _figure(effort))


def _figure(effort: Effort) -> Figure:
    x = torch.tensor(RATES)
    failed, final = {}, {}
    for name in MAKES:
        losses = torch.stack([_final(name, rate, effort) for rate in RATES]).clamp(max=2 * NULL)
        shares = [share_interval(row > 0.95 * NULL) for row in losses]
        failed[name] = curve(RATES, shares)
        quartiles = losses.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=1)
        final[name] = Line(x, quartiles[1], (quartiles[0], quartiles[2]))
    panels = [
        Panel("failed", "learning rate", "share of trainings", failed, xscale="log"),
        Panel("final loss, median and quartiles", "learning rate", "training loss", final, xscale="log", yscale="log"),
    ]
    return Figure("learning_rates", f"Digits, {DEPTH} layers, {STEPS} steps of SGD with momentum", panels)


SETTING = (
    f"Digits, {DEPTH} layers of {WIDTH} units, {STEPS} steps of SGD with momentum {MOMENTUM:g}, learning rates of "
    f"{', '.join(f'{rate:g}' for rate in RATES)}. A run fails if its final loss is not better than guessing; "
    f"differences up to {100 * FEW:g} points do not count. The other rows use rates up to {SAFE[-1]:g}. The spread "
    "is the standard deviation of the final log loss over the seeds. The roughness is the mean change of the log "
    f"gradient norm from step to step. Differences up to {LITTLE:.0%} do not count."
)

LEAKY_UNSTABLE = Claim(
    title="Leaky ReLU is unstable and harder to train",
    sections="3.2.3",
    says="Leaky ReLU is somewhat unstable, which makes training more difficult.",
    experiment=SETTING,
    measure=partial(_against_relu, "leaky ReLU", False),
    depends_on="the measure of instability",
)

ELU_STEADIES = Claim(
    title="ELU mitigates instability",
    sections="3.2.4",
    says="ELU mitigates instability to a degree.",
    experiment=SETTING,
    measure=partial(_against_relu, "ELU", True),
    depends_on="the measure of instability",
)
