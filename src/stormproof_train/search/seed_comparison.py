r"""The winner against the default, on the same fresh seeds.

A seed draws the first weights, the order of the data, and where the data have no split of their own that too. So the
:math:`k` differences share samples and are not independent. The variance of their mean is taken for
:math:`s^2 \left( \tfrac{1}{k} + \tfrac{m}{n} \right)` with :math:`m` validation and :math:`n` training samples.

References:
    Nadeau, Bengio, Inference for the generalization error, 2003, section 4, the corrected resampled t test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from stormproof_train.search.final_evaluation import DEFAULT, Again
from stormproof_train.search.objectives import Objective


def compared(
    runs: Sequence[Again], results: Mapping[str, Any], objective: Objective, samples: Mapping[str, int] | None
) -> dict[str, Any]:
    """What is to be said of the two, as plain values.

    Args:
        runs: all, the winner's and the default's.
        results: by name of a run what came of it, as far as is known.
        objective: of a validation.
        samples: of the ``training`` and the ``validation`` split; None where nobody tells: then the differences count
            as independent, and ``samples_known`` is false.
    """
    values: dict[int, dict[str, float]] = {}
    failed = []
    for each in runs:
        found = results.get(each.name)
        if found is None:
            continue
        value = (found["validation"] or {}).get(objective.name.removeprefix("val/"))
        if value is None or not math.isfinite(value):
            failed.append({"run": each.name, "reason": found["reason"] or f"{objective.name} is not finite"})
        else:
            values.setdefault(each.seed, {})[DEFAULT if each.who == DEFAULT else "winner"] = value
    pairs = {seed: both for seed, both in values.items() if len(both) == 2}
    one, other = ([both[who] for both in pairs.values()] for who in ("winner", DEFAULT))
    overlap = samples["validation"] / samples["training"] if samples else 0.0
    return {
        "metric": objective.name, "higher_is_better": objective.higher_is_better, "seeds": list(pairs), "winner": one,
        "default": other, "failed": failed, "samples_known": samples is not None, **paired(one, other, overlap),
    }  # fmt: skip


def paired(one: Sequence[float], other: Sequence[float], overlap: float = 0.0) -> dict[str, float | None]:
    """The mean difference of pairs with its 95% interval, and the p value of the t test; None with fewer than two.

    Args:
        one: a value for each seed.
        other: the other's, for the same seeds.
        overlap: validation samples for each training sample; 0 gives the plain paired t test.

    Example:
        >>> told = paired([1.0, 2.0, 3.5], [1.5, 2.5, 3.5])
        >>> round(told["difference"], 3), round(told["p_value"], 3)
        (-0.333, 0.184)
    """
    differences = np.subtract(one, other)
    count = len(differences)
    unknown: dict[str, float | None] = {"low": None, "high": None, "p_value": None}
    if count < 2:
        return {"difference": float(differences[0]) if count else None, **unknown}
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) * math.sqrt(1 / count + overlap)
    if error == 0:
        return {"difference": mean, **unknown}
    low, high = stats.t.interval(0.95, count - 1, mean, error)
    p_value = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return {"difference": mean, "low": float(low), "high": float(high), "p_value": p_value}
