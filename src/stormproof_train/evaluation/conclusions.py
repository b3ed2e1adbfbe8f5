"""States what an evaluation says about a run, in sentences for the terminal and the report."""

from __future__ import annotations

from dataclasses import dataclass

from stormproof_train.console import format_value
from stormproof_train.evaluation.records import Evaluation, LinearBaseline

METRIC_NAMES = {"accuracy": "accuracy", "r2": "R²"}


@dataclass(frozen=True)
class BaselineComparison:
    """The network against a baseline.

    Attributes:
        metric: ``accuracy`` or ``r2``.
        value: Metric of the baseline on the test split.
        better: True if the network is better, False if it is not, None if the 95% interval does not decide.
    """

    metric: str
    value: float
    better: bool | None


def conclusions(evaluation: Evaluation) -> list[str]:
    """Returns one sentence for each baseline of the evaluation.

    Args:
        evaluation: Content of an ``evaluation.json``.
    """
    sentences = []
    constant = compare_with_constant(evaluation)
    if constant is not None:
        baseline = "the most common class" if constant.metric == "accuracy" else "the mean of the test targets"
        relation = {True: "better than", False: "no better than", None: "not clearly better than"}[constant.better]
        sentences.append(
            f"The network is {relation} always predicting {baseline} ({METRIC_NAMES[constant.metric]} "
            f"{format_value(constant.value)})."
        )
    linear = compare_with_linear(evaluation)
    baselines = evaluation.get("baselines")
    if linear is not None and baselines is not None:
        sentences.append(_linear_sentence(linear, baselines["linear"]))
    return sentences


def compare_with_constant(evaluation: Evaluation) -> BaselineComparison | None:
    """Compares with the constant that is best for the test split: its most common class, or the mean of its targets.

    Args:
        evaluation: Content of an ``evaluation.json``.

    Returns:
        The comparison, or None if the metric of the network has no interval.
    """
    confusion = evaluation.get("confusion")
    name = "r2" if confusion is None else "accuracy"
    interval = evaluation["headline"].get(name)
    if interval is None or interval["low"] is None or interval["high"] is None:
        return None
    value = 0.0 if confusion is None else _most_common_share(confusion)
    return BaselineComparison(name, value, _decide(better=interval["low"] > value, worse=interval["high"] <= value))


def compare_with_linear(evaluation: Evaluation) -> BaselineComparison | None:
    """Compares with the linear model by the interval of the difference on the same test samples.

    Args:
        evaluation: Content of an ``evaluation.json``.

    Returns:
        The comparison, or None if there is no linear model or the metric of the network has no interval.
    """
    linear = evaluation.get("baselines", {}).get("linear")
    if linear is None:
        return None
    difference = linear["difference"]
    metric, low, high = difference["metric"], difference["low"], difference["high"]
    if evaluation["headline"][metric]["low"] is None:  # R² of a single sample, or of equal targets
        return None
    better = None if low is None or high is None else _decide(better=low > 0, worse=high < 0)
    return BaselineComparison(metric, linear["headline"][metric], better)


def _decide(*, better: bool, worse: bool) -> bool | None:
    if better:
        return True
    return False if worse else None


def _most_common_share(confusion: list[list[int]]) -> float:
    samples = [sum(row) for row in confusion]
    return max(samples) / sum(samples)


def _linear_sentence(comparison: BaselineComparison, linear: LinearBaseline) -> str:
    relation = {True: "better than", False: "worse than", None: "not clearly better or worse than"}[comparison.better]
    num_rows, num_training_rows = linear["rows"], linear["training_rows"]
    row_counts = f"{num_training_rows:,}" if num_rows == num_training_rows else f"{num_rows:,} of {num_training_rows:,}"
    difference = linear["difference"]
    interval_text = (
        ""
        if difference["low"] is None or difference["high"] is None
        else f", 95% interval {format_value(difference['low'])} to {format_value(difference['high'])}"
    )
    return (
        f"The network is {relation} {linear['model']} fitted on {row_counts} training rows "
        f"({METRIC_NAMES[comparison.metric]} {format_value(comparison.value)}; difference "
        f"{format_value(difference['value'])}{interval_text}, "
        f"{difference['samples']:,} test samples)."
    )
