"""The numbers of searches that nobody ran."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

RUNGS = (1 / 27, 1 / 9, 1 / 3)
LENGTH = 540
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
LOSS = {"name": "val/loss", "higher_is_better": False}


def made_search(trials: Sequence[Mapping[str, Any]] = (), **numbers: Any) -> dict[str, Any]:
    """A finished search of one objective, with what ``numbers`` say otherwise."""
    values = {each["number"]: (each["values"] or [None])[0] for each in trials if each["state"] == "complete"}
    finite = {number: value for number, value in values.items() if isinstance(value, float) and math.isfinite(value)}
    return {
        "name": "digits-mlp-3fa91c20", "finished": True, "objectives": [LOSS], "constraints": [], "sampler": "tpe",
        "pruner": "asha", "rungs": list(RUNGS), "space": SPACE, "trials": list(trials),
        "best": min(finite, key=lambda number: finite[number]) if finite else None, "front": [],
        "importances": [{}], "random": None, "final": None, "test": None, "tested": None, "also_tested": [],
        "words": {"winner": [], "default": []},
        "totals": {"steps": sum(each["steps"] for each in trials), "seconds": 750.0, "gpu_hours": 0.0}, **numbers,
    }  # fmt: skip


def made_trial(number: int, **told: Any) -> dict[str, Any]:
    """A complete trial, with what ``told`` says otherwise."""
    end = f"2026-01-01T{number // 60:02d}:{number % 60:02d}:00.000+00:00"
    return {
        "number": number, "state": "complete", "params": {"activation": "relu", "optimizer.lr": 0.01}, "values": [0.2],
        "feasible": True, "curve": [[0.5, 270, 0.3], [1.0, LENGTH, 0.2]], "steps": LENGTH, "seconds": 2.5,
        "start": "2026-01-01T00:00:00.000+00:00", "end": end, "reason": None,
        "run": f"trials/trial-{number:04d}", **told,
    }  # fmt: skip


def drawn_trials(count: int, validations: int = 27, seed: int = 0) -> list[dict[str, Any]]:
    """Random trials: the worse are stopped at the rungs, one in thirty fails, one in ten breaks a constraint."""
    draw = random.Random(seed)
    return [_drawn(number, validations, draw) for number in range(count)]


def _drawn(number: int, validations: int, draw: random.Random) -> dict[str, Any]:
    params: dict[str, Any] = {
        "activation": draw.choice(["relu", "elu", "gelu", "tanh"]),
        "optimizer.lr": 10 ** draw.uniform(-4, math.log10(0.3)),
        "model.dropout": draw.uniform(0, 0.6),
        "data.batch_size": round(2 ** draw.uniform(4, 8)),
    }
    if params["activation"] == "elu":
        params["activation.alpha"] = draw.uniform(0.5, 2)
    off = abs(math.log10(params["optimizer.lr"]) + 1.8)
    floor = 0.07 + 0.12 * off**2 + 0.1 * abs(params["model.dropout"] - 0.2) + 0.02 * (params["activation"] == "tanh")
    if draw.random() < 1 / 30:
        reason = "it diverged: train/loss is not finite since step 35; try a lower optimizer.lr"
        curve = [[1 / 27, 20, 2.31], [2 / 27, 40, None]]
        return made_trial(
            number, state="failed", params=params, values=None, curve=curve, steps=41, seconds=0.2, reason=reason
        )
    fate = floor + draw.uniform(0, 0.15)
    lasts = RUNGS[0] if fate > 0.5 else RUNGS[1] if fate > 0.35 else RUNGS[2] if fate > 0.24 else 1.0
    curve = [
        [place / validations, place * LENGTH // validations, value]
        for place in range(1, round(lasts * validations) + 1)
        for value in [floor + (2.3 - floor) * math.exp(-9 * place / validations) + draw.gauss(0, 0.01)]
    ]
    steps = round(lasts * LENGTH)
    told = {"params": params, "curve": curve, "steps": steps, "seconds": steps / 200}
    if lasts < 1:
        reason = f"at {lasts:.1%} of its length it was not among the best third"
        return made_trial(number, state="pruned", values=None, reason=reason, **told)
    return made_trial(number, values=[curve[-1][2]], feasible=draw.random() > 0.1, **told)
