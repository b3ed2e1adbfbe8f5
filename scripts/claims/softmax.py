"""Inputs and outputs of softmax."""

from __future__ import annotations

import torch

from claims.claim import Claim, Effort, Result, Row, above, at_most, check_at_least
from claims.interval import exact_interval

SHAPES = {"a vector": (10,), "a batch of vectors": (32, 10), "a batch of maps": (8, 10, 7, 7)}
CLASSES = 10
ROUNDING = 1e-6


def _logits(shape: tuple[int, ...]) -> torch.Tensor:
    return 10 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _dim(shape: tuple[int, ...]) -> int:
    return min(1, len(shape) - 1)


def normalized(effort: Effort) -> Result:
    logits = _logits((10_000, CLASSES))
    outputs = logits.softmax(1)
    same_order = (outputs.argsort(1) == logits.argsort(1)).double().mean().item()
    moved = (logits + 3).softmax(1)
    return Result(
        [
            Row("smallest output", exact_interval(outputs.min().item()), check_at_least(0.0), ".1e"),
            Row("largest |sum − 1|", exact_interval((outputs.sum(1) - 1).abs().max().item()), at_most(ROUNDING), ".1e"),
            Row(
                "share of ranks in sorted order that are unchanged",
                exact_interval(same_order),
                check_at_least(1.0),
                ".1%",
            ),
            Row(
                "largest change if a constant is added to all inputs",
                exact_interval((moved - outputs).abs().max().item()),
                None,
                ".1e",
            ),
        ]
    )


NORMALIZED = Claim(
    title="Softmax gives each class a probability",
    sections="3.1.6",
    says="Softmax, used for several classes, turns its input into a normalized probability distribution with one "
    "probability per class.",
    experiment=f"Ten thousand vectors of {CLASSES} normal numbers with standard deviation 10. Outputs must be at "
    "least 0, sum to 1, and have the same order as the inputs.",
    measure=normalized,
    left_open="A normalized distribution can be wrong. The claim does not cover how often a class with probability "
    "p is the true one.",
)


def one_dimensional(effort: Effort) -> Result:
    rows = []
    for name, shape in SHAPES.items():
        outputs = _logits(shape).softmax(_dim(shape))
        wrong = (outputs.sum(_dim(shape)) - 1).abs().max().item()
        detail = f"shape {shape}: largest |sum − 1|"
        taken = len(shape) == 1
        rows.append(Row(name, exact_interval(wrong), at_most(ROUNDING) if taken else above(ROUNDING), ".1e", detail))
    return Result(rows)


ONE_DIMENSIONAL = Claim(
    title="Softmax takes a one-dimensional tensor",
    sections="3.1.6",
    says="The function takes a one-dimensional tensor.",
    experiment="Softmax over the classes of a vector, a batch of vectors and a batch of maps. If it accepted one "
    "dimension only, the outputs for the others would not sum to 1.",
    measure=one_dimensional,
    depends_on="whether it means at least or at most one dimension",
    why="Each distribution is computed from one vector. A tensor can contain any number of vectors, along the "
    "dimension `dim`.",
)
