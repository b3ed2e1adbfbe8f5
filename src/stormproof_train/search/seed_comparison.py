r"""Compares the winner with the default on the same fresh seeds.

A seed determines the initial weights, the order of the data and, if the data have no fixed split, the split. The
:math:`k` differences therefore share samples and are not independent. The variance of their mean is estimated as
:math:`s^2 \left( \tfrac{1}{k} + \tfrac{m}{n} \right)` for :math:`m` validation and :math:`n` training samples.

References:
    Nadeau, Bengio, Inference for the generalization error, 2003, section 4, the corrected resampled t test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from stormproof_train.search.final_evaluation import DEFAULT, FinalRun
from stormproof_train.search.objectives import Objective
from stormproof_train.search.records import FailedRun, PairedTest, WinnerComparison


def compare_with_default(
    runs: Sequence[FinalRun], results: Mapping[str, Any], objective: Objective, samples: Mapping[str, int] | None
) -> WinnerComparison:
    """Compares both as plain values.

    Args:
        runs: All final runs of the winner and of the default.
        results: Known results by name of the run.
        objective: A validation metric.
        samples: Sizes of the ``training`` and the ``validation`` split. None if unknown. The differences are then
            treated as independent, and ``samples_known`` is False.
    """
    values_by_seed: dict[int, dict[str, float]] = {}
    failures: list[FailedRun] = []
    for run in runs:
        result = results.get(run.name)
        if result is None:
            continue
        value = (result["validation"] or {}).get(objective.name.removeprefix("val/"))
        if value is None or not math.isfinite(value):
            failures.append({"run": run.name, "reason": result["reason"] or f"{objective.name} is not finite"})
        else:
            values_by_seed.setdefault(run.seed, {})[DEFAULT if run.label == DEFAULT else "winner"] = value
    pairs = {seed: pair for seed, pair in values_by_seed.items() if len(pair) == 2}
    winner_values, default_values = ([pair[label] for pair in pairs.values()] for label in ("winner", DEFAULT))
    overlap = samples["validation"] / samples["training"] if samples else 0.0
    return {
        "metric": objective.name, "higher_is_better": objective.higher_is_better, "seeds": list(pairs),
        "winner": winner_values,
        "default": default_values, "failed": failures, "samples_known": samples is not None,
        **paired_t_test(winner_values, default_values, overlap),
    }  # fmt: skip


def paired_t_test(first: Sequence[float], second: Sequence[float], overlap: float = 0.0) -> PairedTest:
    """Runs a paired t-test. At least two pairs are needed for an interval and a p-value.

    Args:
        first: One value per seed.
        second: Values to compare with, for the same seeds.
        overlap: Ratio of validation to training samples. 0 gives the plain paired t-test.

    Example:
        >>> result = paired_t_test([1.0, 2.0, 3.5], [1.5, 2.5, 3.5])
        >>> round(result["difference"], 3), round(result["p_value"], 3)
        (-0.333, 0.184)
    """
    differences = np.subtract(first, second)
    count = len(differences)
    if count < 2:
        difference = float(differences[0]) if count else None
        return {"difference": difference, "low": None, "high": None, "p_value": None}
    mean = float(differences.mean())
    standard_error = float(differences.std(ddof=1)) * math.sqrt(1 / count + overlap)
    if standard_error == 0:
        return {"difference": mean, "low": None, "high": None, "p_value": None}
    low, high = stats.t.interval(0.95, count - 1, mean, standard_error)
    p_value = float(2 * stats.t.sf(abs(mean) / standard_error, count - 1))
    return {"difference": mean, "low": float(low), "high": float(high), "p_value": p_value}
