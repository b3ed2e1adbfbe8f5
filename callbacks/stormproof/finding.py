"""What a diagnosis says: the one language of all detectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypedDict


class Problem(StrEnum):
    """What can be wrong with a training. Every finding is of one of these."""

    NON_FINITE_DATA = "non_finite_data"
    """The batch itself holds a NaN or an infinity."""
    NON_FINITE = "non_finite"
    """A NaN or an infinity came up in the network, the loss, a gradient or the weights, from data that had none."""
    NOT_IN_OPTIMIZER = "not_in_optimizer"
    """Parameters receive a gradient, and no optimizer holds them."""
    IN_TWO_OPTIMIZERS = "in_two_optimizers"
    """Parameters are held by two optimizers, or twice by one."""
    NO_GRADIENT = "no_gradient"
    """A layer that the output depends on receives no gradient: the graph is cut behind it."""
    WEIGHTS_UNCHANGED = "weights_unchanged"
    """A layer has a gradient and is in an optimizer, and its weights stay what they were."""
    LEARNING_RATE_ZERO = "learning_rate_zero"
    """The learning rate is zero, or so small that nothing changes."""
    LEARNING_RATE_TOO_HIGH = "learning_rate_too_high"
    """The updates are too large for the loss to fall."""
    LEARNING_RATE_TOO_LOW = "learning_rate_too_low"
    """The loss falls steadily, and so slowly that it gets nowhere."""
    GRADIENTS_NOT_CLEARED = "gradients_not_cleared"
    """Gradients of earlier steps are in those of later ones: ``zero_grad`` is missing."""
    VANISHING_GRADIENTS = "vanishing_gradients"
    """The gradient shrinks from layer to layer until the first ones do not learn."""
    EXPLODING_GRADIENTS = "exploding_gradients"
    """The gradient grows from layer to layer, or from step to step, beyond what can be trained with."""
    DEAD_UNITS = "dead_units"
    """Units, most of a layer's or more and more, put out one value whatever the input."""
    BATCH_NORM_STATISTICS_LAG = "batch_norm_statistics_lag"
    """Units that are active in training are dead in evaluation mode, which uses running statistics."""
    SATURATED_UNITS = "saturated_units"
    """Units are nearly always where their activation is flat."""
    OUTPUT_IGNORES_INPUT = "output_ignores_input"
    """The output is the same for all inputs."""
    NO_BETTER_THAN_CONSTANT = "no_better_than_constant"
    """The loss is no lower than that of the best constant prediction."""
    DEGENERATE_TARGETS = "degenerate_targets"
    """All targets are one class, or one number."""
    TARGETS_UNRELATED_TO_INPUTS = "targets_unrelated_to_inputs"
    """The predictions fit other samples' targets as well as their own, as where targets were shuffled."""
    BROADCAST_MISMATCH = "shapes_broadcast"
    """Predictions and targets have shapes that torch stretches to fit: (N, 1) against (N,)."""
    INPUT_BADLY_SCALED = "input_badly_scaled"
    """The input is of a size, or an offset, that the network cannot train with."""
    LOSS_INPUT_MISMATCH = "loss_input_mismatch"
    """The loss takes logits, probabilities or their logarithms, and gets another of these."""
    UNREACHABLE_TARGETS = "head_cannot_reach_targets"
    """The last layer cannot put out the targets: a ReLU for negative numbers, a sigmoid for large ones."""
    PLATEAU = "plateau"
    """The loss fell and has stopped falling, which noise in the targets can be the reason of."""
    LOSS_SPIKE = "loss_spike"
    """The loss jumped out of what it was."""
    OVERFITTING = "overfitting"
    """The training loss falls and that of the validation rises, beyond noise."""
    REPLICAS_DIVERGED = "replicas_diverged"
    """The ranks of a job hold different weights."""
    DATA_STARVATION = "data_starvation"
    """Much of each step is spent waiting for data."""
    SLOW_RANK = "slow_rank"
    """One rank takes longer than the others, which wait for it in each step."""


class Severity(StrEnum):
    """How bad it is: ``info`` may be meant so, ``warning`` is a mistake most likely, ``critical`` makes all useless."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class FindingRecord(TypedDict):
    """A :class:`Finding` in JSON files and checkpoints."""

    problem: str
    severity: str
    where: str
    since_step: int
    step: int
    evidence: dict[str, float | str]
    advice: str
    consequences: list[str]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a training, why that is known, and what to do.

    Attributes:
        problem: which one.
        severity: how bad it is.
        where: the layer, tensor or parameter group; empty where it is the training as a whole.
        since_step: the optimizer steps that were done when it began, as far as is known.
        step: those that were done when it was first reported; 0 before training.
        evidence: the numbers that prove it, by name.
        advice: the next thing to try, in plain PyTorch.
        consequences: what else was found that this explains.

    Example:
        >>> print(Finding(Problem.DEAD_UNITS, Severity.WARNING, "net.1", 0, 20, {"dead": 0.97}, "lower the rate"))
        warning: dead units in net.1 since step 0 (dead 0.97): lower the rate
    """

    problem: Problem
    severity: Severity
    where: str
    since_step: int
    step: int
    evidence: Mapping[str, float | str] = field(default_factory=dict)
    advice: str = ""
    consequences: tuple[str, ...] = ()

    def __str__(self) -> str:
        evidence = ", ".join(
            f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
            for name, value in self.evidence.items()
        )
        return f"{self.severity}: {self.title} since step {self.since_step} ({evidence}): {self.advice}"

    @property
    def title(self) -> str:
        """The problem and where it is, in words."""
        problem = self.problem.replace("_", " ")
        problem_words = {word.removesuffix("s") for word in problem.split()}  # "degenerate targets in target"
        return problem if not self.where or self.where in problem_words else f"{problem} in {self.where}"

    def as_dict(self) -> FindingRecord:
        """Returns the fields as JSON-serializable values."""
        return {
            "problem": str(self.problem),
            "severity": str(self.severity),
            "where": self.where,
            "since_step": self.since_step,
            "step": self.step,
            "evidence": dict(self.evidence),
            "advice": self.advice,
            "consequences": list(self.consequences),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """The finding whose :meth:`as_dict` was ``values``."""
        return cls(
            **{
                **values,
                "problem": Problem(values["problem"]),
                "severity": Severity(values["severity"]),
                "evidence": dict(values["evidence"]),
                "consequences": tuple(values["consequences"]),
            }
        )
