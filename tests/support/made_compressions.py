"""The numbers of compressions that nobody ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BYTES, MACS, PARAMETERS, SECONDS = 820_000, 4_800_000, 204_000, 0.00097
"""Of the original."""
PER_BATCH = {"1": 1.0, "32": 14.0}
"""By batch size how many times as long as a single sample it takes."""


def made_compression(artifacts: Sequence[dict[str, Any]] | None = None, **numbers: Any) -> dict[str, Any]:
    """A compression of a classifier within 1pp, with what ``numbers`` say otherwise."""
    artifacts = SEVERAL if artifacts is None else artifacts
    if "budget" in numbers and numbers["budget"] is None:
        artifacts = [{**each, "within": True} for each in artifacts]
    return {
        "name": "digits-cnn-relu-3fa91c20", "run": "runs/digits-cnn-relu-3fa91c20",
        "checkpoint": "runs/digits-cnn-relu-3fa91c20/checkpoints/000009-step-4220.ckpt", "task": "classification",
        "headline": "accuracy", "higher_is_better": True,
        "budget": {"told": "1pp", "allowed": 0.01}, "target": {}, "minimize": "latency",
        "machine": {"processor": "AMD EPYC 9R14", "threads": 1, "int8": "it has instructions for int8"},
        "made_with": {
            "network": {"model": "stormproof_train.models.CNN", "activation": "torch.nn.ReLU"},
            "versions": {"stormproof": "0.1.0", "torch": "2.13.0"},
        },
        "samples": {"validation": 2000, "test": 1500, "calibration": 512},
        "artifacts": list(artifacts),
        "best": next((each["name"] for each in artifacts if each["name"] == "pruned-2x-int8"), None),
        "why_none": None, "skipped": [], "fine_tuning": [], **numbers,
    }  # fmt: skip


def made_artifact(name: str, lost: float | None, times: float = 1.0, /, **told: Any) -> dict[str, Any]:
    """One that lost so much, and is so many times faster and smaller, with what ``told`` says otherwise."""
    value = None if lost is None else 0.975 - lost
    is_original, within = name == "original", lost is not None and lost + 0.004 <= 0.01
    tested = value if within else None
    return {
        "name": name, "network": name.removesuffix("-int8"),
        "quantization": "int8" if name.endswith("-int8") else "none",
        "method": "as it was trained" if is_original else f"pruned to 1/{times:g} of the multiply-accumulates",
        "validation": spread(value, 0.007), "lost": spread(lost, 0.0 if is_original else 0.004),
        "within": within,
        "test": None if tested is None else spread(tested - 0.002, 0.008),
        "test_lost": None if is_original or tested is None else spread(lost, 0.005),
        "mcnemar": None if is_original or tested is None else {"first_alone": 12, "second_alone": 8, "p_value": 0.503},
        "calibration_error": 0.012, "bytes": round(BYTES / times), "parameters": round(PARAMETERS / times),
        "macs": round(MACS / times), "memory": round(3.1 * BYTES / times), "load_seconds": 0.021,
        "latency": {
            batch: {
                "median": SECONDS * much / times,
                "p95": 1.2 * SECONDS * much / times,
                "original": 1.03 * SECONDS * much,
            }
            for batch, much in PER_BATCH.items()
        },
        "speedup": {batch: spread(times, 0.0 if is_original else 0.07 * times) for batch in PER_BATCH},
        "difference": 3.1e-6, "lost_by_class": [], "beaten_by": None, "remarks": [],
        "folder": f"artifacts/{name}", **told,
    }  # fmt: skip


def spread(value: float | None, half: float) -> dict[str, float | None]:
    """A value in the middle of its interval."""
    return {
        "value": value,
        "low": None if value is None else value - half,
        "high": None if value is None else value + half,
    }


ORIGINAL = made_artifact("original", 0.0)
SEVERAL = [
    ORIGINAL,
    made_artifact("original-int8", 0.001, 1.9, bytes=round(BYTES / 3.9), macs=MACS, parameters=PARAMETERS),
    made_artifact("original-weights-int8", 0.002, 0.98, bytes=round(BYTES / 3.8), macs=MACS, parameters=PARAMETERS,
                  quantization="weights_int8", beaten_by="original-int8", remarks=["not faster"]),
    made_artifact("pruned-1.5x", 0.002, 1.4, beaten_by="original-int8"),
    made_artifact("pruned-2x", 0.003, 1.8),
    made_artifact("pruned-2x-int8", 0.004, 3.1, bytes=round(BYTES / 7.6), macs=MACS // 2, parameters=PARAMETERS // 2),
    made_artifact("pruned-4x", 0.021, 3.4),
    made_artifact("pruned-4x-int8", 0.024, 5.2),
]  # fmt: skip
BEYOND = [
    ORIGINAL,
    made_artifact("pruned-2x", 0.03, 1.8),
    made_artifact("pruned-2x-int8", 0.04, 3.1),
]
FINE_TUNING = [
    {"name": "pruned-2x", "run": "fine_tuning/pruned-2x-77aa01bc", "steps": 2110, "seconds": 341.0, "times": 2.0,
     "became": ""},
    {"name": "pruned-4x", "run": "fine_tuning/pruned-4x-0192bb0d", "steps": 2110, "seconds": 212.0, "times": 4.0,
     "became": "too much lost"},
    {"name": "pruned-8x", "run": "fine_tuning/pruned-8x-5d00ab17", "steps": 40, "seconds": 4.0, "times": 8.0,
     "became": "failed: it diverged"},
]  # fmt: skip


def made_regression(**numbers: Any) -> dict[str, Any]:
    """A compression of a network that predicts numbers, whose test split was not read."""
    untested = {"test": None, "test_lost": None, "mcnemar": None, "calibration_error": None}
    artifacts = [
        {**made_artifact(name, lost, times), **untested, "validation": spread(53.2 + lost, 2.0),
         "lost": spread(lost, 0.0 if name == "original" else 0.4), "within": lost < 1}
        for name, lost, times in (("original", 0.0, 1.0), ("pruned-2x-int8", 0.52, 2.4), ("pruned-4x-int8", 9.0, 3.9))
    ]  # fmt: skip
    return made_compression(
        artifacts, task="regression", headline="rmse", higher_is_better=False, budget={"told": "2%", "allowed": 1.064},
        samples={"validation": 90, "test": None, "calibration": 300}, **numbers,
    )  # fmt: skip
