"""Defines the content of ``evaluation.json`` and of comparisons of runs."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from stormproof_train.evaluation.intervals import IntervalRecord


class ConstantBaseline(TypedDict):
    """The constant that is best for the test split."""

    headline: dict[str, float]


class LinearDifference(IntervalRecord):
    """Difference in a metric between network and linear model (network minus linear), with its 95% interval.

    Attributes:
        metric: ``accuracy`` or ``r2``.
        samples: Number of test samples.
    """

    metric: str
    samples: int


class LinearBaseline(TypedDict):
    """A linear model of the training split.

    Attributes:
        model: ``logistic regression`` or ``ridge regression``.
        rows: Number of rows that it was fitted on.
        training_rows: Number of rows of the training split.
        headline: Values by metric.
        difference: Comparison with the network.
    """

    model: str
    rows: int
    training_rows: int
    headline: dict[str, float]
    difference: LinearDifference


class Baselines(TypedDict):
    """Baselines of a table."""

    constant: ConstantBaseline
    linear: LinearBaseline


class Evaluation(TypedDict):
    """Content of ``evaluation.json``.

    Attributes:
        samples: Number of samples.
        headline: Values with their 95% intervals, by metric.
        classes: ``ClassMetrics`` of each class. Classification only.
        confusion: Counts by true and predicted class. Classification only.
        reliability: ``ReliabilityBin`` records. Only for probabilities.
        calibration_error: Expected calibration error. Only for probabilities.
        residuals: ``Residuals`` of each output. Regression only.
        baselines: Comparison with a constant and a linear model. Tables only.
        class_names: Names of the classes by index. Missing if unknown.
    """

    samples: int
    headline: dict[str, IntervalRecord]
    classes: NotRequired[list[dict[str, Any]]]
    confusion: NotRequired[list[list[int]]]
    reliability: NotRequired[list[dict[str, Any]]]
    calibration_error: NotRequired[float]
    residuals: NotRequired[list[dict[str, Any]]]
    baselines: NotRequired[Baselines]
    class_names: NotRequired[list[str]]


class McNemarRecord(TypedDict):
    """A :class:`stormproof_train.evaluation.comparison.McNemar` in a JSON file."""

    only_first_correct: int
    only_second_correct: int
    p_value: float


class Comparison(TypedDict):
    """Two runs on the same samples.

    Attributes:
        samples: Number of samples.
        differences: Difference in each metric (first minus second), with its 95% interval.
        mcnemar: McNemar's test. Classification only.
    """

    samples: int
    differences: dict[str, IntervalRecord]
    mcnemar: NotRequired[McNemarRecord]
