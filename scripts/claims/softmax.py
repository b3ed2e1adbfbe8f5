"""What softmax takes and gives."""

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
            Row("share of places in order of size that stay", exact_interval(same_order), check_at_least(1.0), ".1%"),
            Row(
                "largest change if all inputs are raised alike",
                exact_interval((moved - outputs).abs().max().item()),
                None,
                ".1e",
            ),
        ]
    )


NORMALIZED = Claim(
    title="Softmax gives each class a probability",
    sections="3.1.6",
    says="Softmax, used for several classes, turns its input into a normalized probability distribution: a "
    "probability for each class.",
    experiment=f"Ten thousand vectors of {CLASSES} normal numbers with standard deviation 10. Outputs must not be "
    "negative, must sum to 1, and keep the order of the inputs.",
    measure=normalized,
    left_open="That they are a distribution does not make them right: how often a class with probability p is the "
    "true one is another question.",
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
    experiment="Softmax over the classes of a vector, of a batch, and of a batch of maps. If one dimension were all "
    "that it takes, what it gives for the others would not sum to 1.",
    measure=one_dimensional,
    depends_on="whether it means one dimension at least, or at most",
    why="One distribution is made of one vector; the tensor may hold any number of them, and `dim` says along which "
    "dimension they lie.",
)
