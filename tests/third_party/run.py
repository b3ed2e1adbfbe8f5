"""Trains a recipe in the environment of its package and prints the result as one line of JSON.

A recipe is a module with ``train(callbacks)``, written as the package's documentation writes it. This script adds
nothing to it but callbacks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from importlib import import_module
from typing import Any

import pytorch_lightning as pl
import torch

import stormproof
from stormproof.testing import FaultInjector

MODES = ("plain", "monitored", "resumable")


class Result(pl.Callback):
    """Keeps what the training run ended with. Its attributes are the class's, because some packages copy callbacks."""

    weights: str | None = None
    steps: int = 0
    findings: list[str] | None = None  # None without TrainingHealth
    losses: list[float] = []  # noqa: RUF012  # of the class on purpose

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if isinstance(outputs, dict) and "loss" in outputs:
            Result.losses.append(float(outputs["loss"]))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        digest = hashlib.sha256()
        for name, value in sorted(pl_module.state_dict().items()):
            if isinstance(value, torch.Tensor):
                digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        Result.weights, Result.steps = digest.hexdigest()[:12], trainer.global_step
        health = next(
            (callback for callback in trainer.callbacks if isinstance(callback, stormproof.TrainingHealth)), None
        )
        Result.findings = [f"{callback}" for callback in health.findings] if health else None


def callbacks(mode: str, folder: str, kill: int | None) -> list[Any]:
    """Returns all callbacks of Stormproof for ``mode``, and a fault if ``kill`` is a step."""
    if mode == "plain":
        return []
    resumes = mode == "resumable"
    return [
        stormproof.GradientNormMonitor(),
        stormproof.DeadNeuronDetector(),
        stormproof.StepTimer(),
        stormproof.TrainingHealth(),
        stormproof.HangWatch(),
        stormproof.Preemption(),
        stormproof.DivergenceGuard(),
        stormproof.CheckpointRecovery(
            folder,
            every_n_train_steps=25,
            wrap_loaders=resumes,
            resume=resumes,
            weights_only=False if resumes else None,
        ),
        *([FaultInjector().kill(step=kill)] if kill else []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("folder", help="folder of the checkpoints")
    parser.add_argument("--kill", type=int, help="step after which the process kills itself")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(1, verbose=False)
    recipe = import_module(f"tests.third_party.recipes.{options.recipe}")
    with warnings.catch_warnings(record=True) as warning_records:
        warnings.simplefilter("always")
        recipe.train([*callbacks(options.mode, options.folder, options.kill), Result()])
    inexact = sorted(
        {str(warning.message) for warning in warning_records if "resume will not be exact" in str(warning.message)}
    )
    result = {"weights": Result.weights, "steps": Result.steps, "findings": Result.findings, "inexact": inexact}
    first, last = Result.losses[:20], Result.losses[-20:]
    print(json.dumps({**result, "loss": [sum(first) / max(1, len(first)), sum(last) / max(1, len(last))]}))


if __name__ == "__main__":
    main()
