"""Accuracy of deep networks by activation."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from claims.batched_training import load_digits, make_mlps, train
from claims.claim import Claim, Effort, Figure, Panel, Result, Row, above, curve
from claims.interval import mean_interval

WIDTH, STEPS, RATE, LITTLE = 32, 300, 1e-3, 0.01
DEPTHS = (2, 5, 10, 20)
MAKES = {"ReLU": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "ELU": nn.ELU, "GELU": nn.GELU}


@cache
def _accuracy(name: str, depth: int, effort: Effort) -> torch.Tensor:
    training, test = load_digits(effort.seeds)
    networks = make_mlps(effort.seeds, MAKES[name], (1, 8, 8), 10, WIDTH, depth)
    return train(networks, training, effort.steps(STEPS), RATE).accuracy(test)


def outstanding(effort: Effort) -> Result:
    deepest = DEPTHS[-1]
    rows = [
        Row(
            name,
            mean_interval(_accuracy("ReLU", deepest, effort) - _accuracy(name, deepest, effort)),
            above(0.0, LITTLE),
            "points",
            f"{deepest} layers: test accuracy of ReLU minus this one",
        )
        for name in MAKES
        if name != "ReLU"
    ]
    lines = {}
    for name in MAKES:
        means = [mean_interval(_accuracy(name, depth, effort)) for depth in DEPTHS]
        lines[name] = curve(DEPTHS, means)
        rows.append(Row(name, means[-1], None, ".1%", f"{deepest} layers: test accuracy"))
    panel = Panel("", "hidden layers", "test accuracy", lines)
    return Result(rows, Figure("deep", f"Digits, {STEPS} steps of Adam, weights of auto", [panel]))


OUTSTANDING = Claim(
    title="ReLU is outstanding in deep networks",
    sections="3.2.2",
    says="ReLU is simple, and its results are especially outstanding in deep networks.",
    experiment=f"Digits, {', '.join(map(str, DEPTHS))} layers of {WIDTH} units, {STEPS} steps of Adam without "
    "normalization and residual connections, weights of `auto`. Outstanding means more accurate than each of the "
    f"others in the deepest network, by more than {100 * LITTLE:g} point.",
    measure=outstanding,
    of_all=True,
    left_open="One task and one width were measured. Normalization and residual connections may change the "
    "differences.",
)
