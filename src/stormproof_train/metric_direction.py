"""Names the metrics that rank runs, and the metrics of which higher values are better. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """Metric that ranks the runs of a task."""

    name: str
    higher_is_better: bool


HEADLINE = {"classification": Headline("accuracy", True), "regression": Headline("rmse", False)}

_HIGHER_IS_BETTER = {
    "accuracy": True, "f1": True, "r2": True, "rmse": False, "mae": False, "loss": False, "epoch_loss": False
}  # fmt: skip


def higher_is_better(metric_name: str) -> bool | None:
    """Returns True if higher values of a metric are better, False if lower values are, and None for other names.

    Example:
        >>> higher_is_better("val/accuracy"), higher_is_better("val/loss"), higher_is_better("optimizer/lr")
        (True, False, None)
    """
    split, _, name = metric_name.partition("/")
    return _HIGHER_IS_BETTER.get(name) if split in {"train", "val", "test"} else None
