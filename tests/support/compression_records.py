"""Synthetic records of compressions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BYTES, MACS, PARAMETERS, LATENCY_SECONDS = 820_000, 4_800_000, 204_000, 0.00097
"""Of the original."""
LATENCY_FACTORS = {"1": 1.0, "32": 14.0}
"""Latency relative to a single sample, by batch size."""


def compression_record(artifacts: Sequence[dict[str, Any]] | None = None, **fields: Any) -> dict[str, Any]:
    """Returns the record of a compression of a classifier within 1pp. ``fields`` override entries."""
    artifacts = ARTIFACTS if artifacts is None else artifacts
    if "budget" in fields and fields["budget"] is None:
        artifacts = [{**artifact, "within": True} for artifact in artifacts]
    return {
        "name": "digits-cnn-relu-3fa91c20", "run": "runs/digits-cnn-relu-3fa91c20",
        "checkpoint": "runs/digits-cnn-relu-3fa91c20/checkpoints/000009-step-4220.ckpt", "task": "classification",
        "headline": "accuracy", "higher_is_better": True,
        "budget": {"requested": "1pp", "allowed": 0.01}, "target": {}, "minimize": "latency",
        "machine": {"processor": "AMD EPYC 9R14", "threads": 1, "int8": "it has int8 instructions"},
        "made_with": {
            "network": {"model": "stormproof_train.models.CNN", "activation": "torch.nn.ReLU"},
            "versions": {"stormproof": "0.1.0", "torch": "2.13.0"},
        },
        "samples": {"validation": 2000, "test": 1500, "calibration": 512},
        "artifacts": list(artifacts),
        "best": next((artifact["name"] for artifact in artifacts if artifact["name"] == "pruned-2x-int8"), None),
        "why_none": None, "skipped": [], "fine_tuning": [], **fields,
    }  # fmt: skip


def artifact_record(name: str, metric_loss: float | None, speedup: float = 1.0, /, **fields: Any) -> dict[str, Any]:
    """Returns the record of an artifact with this loss and speedup. ``fields`` override entries."""
    value = None if metric_loss is None else 0.975 - metric_loss
    is_original, is_within_budget = name == "original", metric_loss is not None and metric_loss + 0.004 <= 0.01
    test_value = value if is_within_budget else None
    return {
        "name": name, "network": name.removesuffix("-int8"),
        "quantization": "int8" if name.endswith("-int8") else "none",
        "method": "as it was trained" if is_original else f"pruned to 1/{speedup:g} of the multiply-accumulates",
        "validation": interval(value, 0.007), "degradation": interval(metric_loss, 0.0 if is_original else 0.004),
        "within": is_within_budget,
        "test": None if test_value is None else interval(test_value - 0.002, 0.008),
        "test_degradation": None if is_original or test_value is None else interval(metric_loss, 0.005),
        "mcnemar": None if is_original or test_value is None else {"only_first_correct": 12, "only_second_correct": 8,
        "p_value": 0.503},
        "calibration_error": 0.012, "bytes": round(BYTES / speedup), "parameters": round(PARAMETERS / speedup),
        "macs": round(MACS / speedup), "memory": round(3.1 * BYTES / speedup), "load_seconds": 0.021,
        "latency": {
            batch: {
                "median": LATENCY_SECONDS * factor / speedup,
                "p95": 1.2 * LATENCY_SECONDS * factor / speedup,
                "original": 1.03 * LATENCY_SECONDS * factor,
            }
            for batch, factor in LATENCY_FACTORS.items()
        },
        "speedup": {batch: interval(speedup, 0.0 if is_original else 0.07 * speedup) for batch in LATENCY_FACTORS},
        "difference": 3.1e-6, "degradation_by_class": [], "dominated_by": None, "remarks": [],
        "folder": f"artifacts/{name}", **fields,
    }  # fmt: skip


def interval(value: float | None, half_width: float) -> dict[str, float | None]:
    """Returns a value with a symmetric interval."""
    return {
        "value": value,
        "low": None if value is None else value - half_width,
        "high": None if value is None else value + half_width,
    }


ORIGINAL = artifact_record("original", 0.0)
ARTIFACTS = [
    ORIGINAL,
    artifact_record("original-int8", 0.001, 1.9, bytes=round(BYTES / 3.9), macs=MACS, parameters=PARAMETERS),
    artifact_record("original-weights-int8", 0.002, 0.98, bytes=round(BYTES / 3.8), macs=MACS, parameters=PARAMETERS,
                  quantization="weights_int8", dominated_by="original-int8", remarks=["not faster"]),
    artifact_record("pruned-1.5x", 0.002, 1.4, dominated_by="original-int8"),
    artifact_record("pruned-2x", 0.003, 1.8),
    artifact_record("pruned-2x-int8", 0.004, 3.1, bytes=round(BYTES / 7.6), macs=MACS // 2, parameters=PARAMETERS // 2),
    artifact_record("pruned-4x", 0.021, 3.4),
    artifact_record("pruned-4x-int8", 0.024, 5.2),
]  # fmt: skip
ARTIFACTS_OVER_BUDGET = [
    ORIGINAL,
    artifact_record("pruned-2x", 0.03, 1.8),
    artifact_record("pruned-2x-int8", 0.04, 3.1),
]
FINE_TUNING = [
    {"name": "pruned-2x", "run": "fine_tuning/pruned-2x-77aa01bc", "steps": 2110, "seconds": 341.0, "times": 2.0,
     "outcome": ""},
    {"name": "pruned-4x", "run": "fine_tuning/pruned-4x-0192bb0d", "steps": 2110, "seconds": 212.0, "times": 4.0,
     "outcome": "degradation too large"},
    {"name": "pruned-8x", "run": "fine_tuning/pruned-8x-5d00ab17", "steps": 40, "seconds": 4.0, "times": 8.0,
     "outcome": "failed: it diverged"},
]  # fmt: skip


def regression_record(**fields: Any) -> dict[str, Any]:
    """Returns the record of a compression of a regression whose test split was not read."""
    untested = {"test": None, "test_degradation": None, "mcnemar": None, "calibration_error": None}
    artifacts = [
        {**artifact_record(name, metric_loss, speedup), **untested, "validation": interval(53.2 + metric_loss, 2.0),
         "degradation": interval(metric_loss, 0.0 if name == "original" else 0.4), "within": metric_loss < 1}
        for name, metric_loss, speedup in (("original", 0.0, 1.0), ("pruned-2x-int8", 0.52, 2.4), ("pruned-4x-int8",
        9.0, 3.9))
    ]  # fmt: skip
    return compression_record(
        artifacts, task="regression", headline="rmse", higher_is_better=False,
        budget={"requested": "2%", "allowed": 1.064},
        samples={"validation": 90, "test": None, "calibration": 300}, **fields,
    )  # fmt: skip
