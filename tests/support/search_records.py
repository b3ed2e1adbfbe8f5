"""Synthetic records of searches."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

RUNGS = (1 / 27, 1 / 9, 1 / 3)
RUN_STEPS = 540
"""Steps of a run."""
SPACE = [
    {"key": "activation", "kind": "choice", "log": False, "choices": ["relu", "elu", "gelu", "tanh"], "low": None,
     "high": None, "only_with": {}},
    {"key": "optimizer.lr", "kind": "float", "log": True, "choices": None, "low": 1e-4, "high": 0.3, "only_with": {}},
    {"key": "model.dropout", "kind": "float", "log": False, "choices": None, "low": 0.0, "high": 0.6, "only_with": {}},
    {"key": "data.batch_size", "kind": "int", "log": True, "choices": None, "low": 16, "high": 256, "only_with": {}},
    {"key": "activation.alpha", "kind": "float", "log": False, "choices": None, "low": 0.5, "high": 2.0,
     "only_with": {"activation": ["elu"]}},
]  # fmt: skip
LOSS_OBJECTIVE = {"name": "val/loss", "higher_is_better": False}


def search_record(trials: Sequence[Mapping[str, Any]] = (), **fields: Any) -> dict[str, Any]:
    """Returns the record of a finished single-objective search. ``fields`` override entries."""
    values = {trial["number"]: (trial["values"] or [None])[0] for trial in trials if trial["state"] == "complete"}
    finite = {number: value for number, value in values.items() if isinstance(value, float) and math.isfinite(value)}
    return {
        "name": "digits-mlp-3fa91c20", "finished": True, "objectives": [LOSS_OBJECTIVE], "constraints": [],
        "sampler": "tpe",
        "pruner": "asha", "rungs": list(RUNGS), "space": SPACE, "trials": list(trials),
        "best": min(finite, key=lambda number: finite[number]) if finite else None, "front": [],
        "importances": [{}], "random": None, "final": None, "test": None, "tested": None, "also_tested": [],
        "overrides": {"winner": [], "default": []},
        "totals": {"steps": sum(trial["steps"] for trial in trials), "seconds": 750.0, "gpu_hours": 0.0}, **fields,
    }  # fmt: skip


def trial_record(number: int, **fields: Any) -> dict[str, Any]:
    """Returns the record of a complete trial. ``fields`` override entries."""
    end = f"2026-01-01T{number // 60:02d}:{number % 60:02d}:00.000+00:00"
    return {
        "number": number, "state": "complete", "params": {"activation": "relu", "optimizer.lr": 0.01}, "values": [0.2],
        "feasible": True, "curve": [[0.5, 270, 0.3], [1.0, RUN_STEPS, 0.2]], "steps": RUN_STEPS, "seconds": 2.5,
        "start": "2026-01-01T00:00:00.000+00:00", "end": end, "reason": None,
        "run": f"trials/trial-{number:04d}", **fields,
    }  # fmt: skip


def random_trials(count: int, validations: int = 27, seed: int = 0) -> list[dict[str, Any]]:
    """Returns random trials: bad ones are pruned at rungs, 1 in 30 fails, 1 in 10 violates a constraint."""
    generator = random.Random(seed)
    return [_random_trial(number, validations, generator) for number in range(count)]


def _random_trial(number: int, validations: int, generator: random.Random) -> dict[str, Any]:
    params: dict[str, Any] = {
        "activation": generator.choice(["relu", "elu", "gelu", "tanh"]),
        "optimizer.lr": 10 ** generator.uniform(-4, math.log10(0.3)),
        "model.dropout": generator.uniform(0, 0.6),
        "data.batch_size": round(2 ** generator.uniform(4, 8)),
    }
    if params["activation"] == "elu":
        params["activation.alpha"] = generator.uniform(0.5, 2)
    log_lr_error = abs(math.log10(params["optimizer.lr"]) + 1.8)
    asymptote = (
        0.07
        + 0.12 * log_lr_error**2
        + 0.1 * abs(params["model.dropout"] - 0.2)
        + 0.02 * (params["activation"] == "tanh")
    )
    if generator.random() < 1 / 30:
        reason = "it diverged: train/loss is not finite since step 35; try a lower optimizer.lr"
        curve = [[1 / 27, 20, 2.31], [2 / 27, 40, None]]
        return trial_record(
            number, state="failed", params=params, values=None, curve=curve, steps=41, seconds=0.2, reason=reason
        )
    noisy_loss = asymptote + generator.uniform(0, 0.15)
    trained_fraction = (
        RUNGS[0] if noisy_loss > 0.5 else RUNGS[1] if noisy_loss > 0.35 else RUNGS[2] if noisy_loss > 0.24 else 1.0
    )
    curve = [
        [validation / validations, validation * RUN_STEPS // validations, value]
        for validation in range(1, round(trained_fraction * validations) + 1)
        for value in [
            asymptote + (2.3 - asymptote) * math.exp(-9 * validation / validations) + generator.gauss(0, 0.01)
        ]
    ]
    steps = round(trained_fraction * RUN_STEPS)
    fields = {"params": params, "curve": curve, "steps": steps, "seconds": steps / 200}
    if trained_fraction < 1:
        reason = f"at {trained_fraction:.1%} of its length it was not among the best third"
        return trial_record(number, state="pruned", values=None, reason=reason, **fields)
    return trial_record(number, values=[curve[-1][2]], feasible=generator.random() > 0.1, **fields)
