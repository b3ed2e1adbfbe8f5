"""Synthetic run folders."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stormproof.finding import Finding
from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.run.metrics_rows import COLUMNS

START = 1_700_000_000.0
SETTINGS = {
    "seed": 0,
    "activation": {"_target_": "torch.nn.ELU", "alpha": 1.0, "inplace": False},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.05},
    "callbacks": {"training_health": {"_target_": "stormproof.TrainingHealth"}},
}

Row = tuple[int, int, str, float]
"""Attempt, step, name, value; the time is a hundredth of a second a step."""


def write_run(
    folder: Path,
    *,
    rows: Iterable[Row] = (),
    status: str = "finished",
    attempts: Sequence[Mapping[str, Any]] = ({"first_step": 0, "last_step": 100},),
    settings: Mapping[str, Any] = SETTINGS,
    changed: Sequence[Mapping[str, Any]] | None = None,
    test: Mapping[str, float] | None = None,
    tested: bool = True,
    findings: Iterable[Finding] = (),
    predictions: Predictions | None = None,
) -> Path:
    """Creates a run folder with the name of the run."""
    folder.mkdir(parents=True)
    attempt_records = [
        {
            "number": number, "host": "here", "ranks": 1, "accumulated": 1, "start": "2026-01-01T00:00:00.000+00:00",
            "end": "2026-01-01T00:01:00.000+00:00", "reason": None, "code": 0, **attempt,
        }
        for number, attempt in enumerate(attempts, start=1)
    ]  # fmt: skip
    record = {"name": folder.name, "id": "0", "identity": "0", "status": status, "attempts": attempt_records}
    if changed is not None:
        record["changed"] = changed
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings)))
    lines = [f"{attempt},{step},0,{START + step / 100:.3f},{name},{value!r}" for attempt, step, name, value in rows]
    (folder / "metrics.csv").write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
    (folder / "findings.jsonl").write_text("".join(json.dumps(finding.as_dict()) + "\n" for finding in findings))
    if predictions is not None:
        predictions.save(folder / "predictions.npz")
        (folder / "evaluation.json").write_text(json.dumps(evaluate(predictions)))
    if status == "finished":
        scores = {"accuracy": 0.9, "loss": 0.3} if test is None else test
        untested = {} if tested else {"test": {}, "intervals": {}}
        (folder / "summary.json").write_text(json.dumps(make_summary(folder.name, scores) | untested))
    return folder


def make_summary(name: str, test: Mapping[str, float]) -> dict[str, Any]:
    headline = next(iter(test))
    return {
        "name": name, "test": test, "validation": test, "intervals": {headline: [0.8, 0.95]}, "headline": headline,
        "higher_is_better": headline == "accuracy", "parameters": 1234, "steps": 100, "epochs": 5, "attempts": 1,
        "seconds": 12.5,
    }  # fmt: skip


def training_rows(
    steps: int, layers: Sequence[str] = ("network.1", "network.3"), attempt: int = 1, first_step: int = 0
) -> list[Row]:
    """Returns the metrics that a run logs at every tenth step, and of a validation at every fiftieth."""
    rows: list[Row] = []
    for step in range(first_step + 9, first_step + steps, 10):
        loss = 2 * math.exp(-step / 100) + 0.1 * math.sin(step)
        rows += [
            (attempt, step, "train/loss", loss), (attempt, step, "optimizer/lr", 1e-3),
            (attempt, step, "time/batch_seconds", 0.008), (attempt, step, "time/data_wait_fraction", 0.25),
            (attempt, step, "gradients/norm", 1 + loss),
            *((attempt, step, f"gradients/norm/{layer}", (index + 1) * loss) for index, layer in enumerate(layers)),
        ]  # fmt: skip
        if step % 50 == 49:
            rows += [
                (attempt, step, "val/loss", loss + 0.1), (attempt, step, "val/accuracy", 1 - loss / 3),
                *((attempt, step, f"units/dead_fraction/{layer}", 0.25) for layer in layers),
            ]  # fmt: skip
    return rows


def make_predictions(samples: int = 60, classes: int = 3) -> Predictions:
    """Returns predicted probabilities, most of which are right."""
    generator = np.random.default_rng(0)
    target = np.arange(samples) % classes
    scores = generator.random((samples, classes)) + 2 * np.eye(classes)[target] * (generator.random((samples, 1)) > 0.1)
    return Predictions("probabilities", scores / scores.sum(1, keepdims=True), target)
