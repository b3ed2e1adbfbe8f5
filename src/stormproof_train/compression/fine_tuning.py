"""A smaller network trained on: a run like any other, from a config that lies beside it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stormproof.checkpoint import Lease, atomic_write
from stormproof_train.compression.literal_yaml import literal_yaml
from stormproof_train.compression.original import Original
from stormproof_train.compression.structure.rebuild import Structure
from stormproof_train.config.redaction import without_secrets
from stormproof_train.console import say
from stormproof_train.counted import counted
from stormproof_train.initialization.checkpoint import digest_of
from stormproof_train.run.folder import RunFolder
from stormproof_train.run.subprocess_run import run_again
from stormproof_train.run.trained_weights import SMALLER, TEACHER, find

_OF_HYDRA = {
    "defaults": ["_self_", {"override hydra/hydra_logging": "none"}, {"override hydra/job_logging": "none"}],
    "hydra": {"run": {"dir": "."}, "output_subdir": None},
}
"""As in the application's own config: Hydra writes nothing."""


@dataclass(frozen=True)
class FineTuning:
    """What is to be trained on.

    Attributes:
        name: of the run.
        runs: the folder of runs.
        group: by which a logger joins them.
        start: the weights it begins with.
        structure: of the network.
        steps: that it takes.
        taught: whether the original teaches, which takes a loss for which it can.
    """

    name: str
    runs: Path
    group: str
    start: Path
    structure: Structure
    steps: int
    taught: bool


def config_of(asked: FineTuning, original: Original) -> dict[str, Any]:
    """The config of the run, plain values.

    Args:
        asked: what is to be trained on.
        original: the network that it came from.
    """
    config = dict(original.config)
    own_network = config["model"]
    if original.plan.logger.has("group") and config["logger"].get("group") is None:
        config["logger"] = {**config["logger"], "group": asked.group}
    config |= {
        "name": asked.name,
        "runs_dir": str(asked.runs),
        "test": False,
        "max_restarts_without_progress": None,  # a kill of the compression is none of its own
        "model": {
            "_target_": SMALLER,
            "network": own_network,
            "shapes": {name: list(shape) for name, shape in asked.structure.shapes.items()},
            "ranks": dict(asked.structure.ranks),
        },
        "initialization": {
            "_target_": "stormproof_train.initialization.from_checkpoint",
            "path": str(asked.start),
            "sha256": digest_of(asked.start),
        },
        "trainer": {**config["trainer"], "max_steps": asked.steps, "max_epochs": -1},
    }
    if asked.taught:
        checkpoint = original.trained.checkpoint
        config["augmentation"] = {
            **config["augmentation"],
            "teacher": {
                "_target_": TEACHER,
                "network": own_network,
                "path": str(checkpoint),
                "sha256": digest_of(checkpoint),
            },
        }
    return config


def fine_tuned(asked: FineTuning, original: Original, configs: Path, log: Path) -> Path:
    """Trains on, where that has not been done, by the command that anyone could type.

    Args:
        asked: what is to be trained on.
        original: the network that it came from.
        configs: the folder for its config.
        log: what it prints.

    Returns:
        The checkpoint that it came to.

    Raises:
        RunError: what the run ended with, if it did not finish.
    """
    run = RunFolder(asked.runs, asked.name)
    if run.finished() is None:
        with atomic_write(configs / f"{asked.name}.yaml") as file:
            config = without_secrets(config_of(asked, original))
            file.write(literal_yaml(_OF_HYDRA | config).encode())
        _wait_until_free(run.path)
        say(f"{asked.name}: fine-tuning for {counted(asked.steps, 'step')} ({log})")
        run_again(
            ["train", "--config-dir", str(configs.absolute()), "--config-name", asked.name, *original.secrets], log
        )
    return find(run.path).checkpoint


def steps_of(original: Original, training: float) -> int:
    """Of a fine-tuning.

    Args:
        original: the run.
        training: its length in lengths of the run.
    """
    return max(1, math.ceil(original.steps * training))


def _wait_until_free(folder: Path) -> None:
    """A run that outlived a killed compression goes on to its end."""
    if Lease.is_held(folder):
        say(f"{folder} is still training: waiting for it")
    while Lease.is_held(folder):
        time.sleep(0.2)
