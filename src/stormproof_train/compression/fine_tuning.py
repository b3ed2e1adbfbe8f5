"""Fine-tunes a compressed network as an ordinary run, with a config file of its own."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stormproof.checkpoint import Lease, atomic_write
from stormproof_train.compression.original import OriginalModel
from stormproof_train.compression.structure.rebuild import Structure
from stormproof_train.config.redaction import redact_settings
from stormproof_train.console import print_line
from stormproof_train.initialization.checkpoint import compute_digest
from stormproof_train.pluralize import pluralize
from stormproof_train.run.folder import RunFolder
from stormproof_train.run.subprocess_run import run_subprocess
from stormproof_train.run.trained_weights import SMALLER_TARGET, TEACHER_TARGET, resolve_weights

_HYDRA_CONFIG = {
    "defaults": ["_self_", {"override hydra/hydra_logging": "none"}, {"override hydra/job_logging": "none"}],
    "hydra": {"run": {"dir": "."}, "output_subdir": None},
}
"""Disables Hydra's output files, as in the config of the application."""


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning run.

    Attributes:
        name: Name of the run.
        runs_dir: Folder of runs.
        group: Group of the run in the logger.
        start_checkpoint: Checkpoint with the initial weights.
        structure: Structure of the network.
        steps: Optimizer steps.
        uses_teacher: Whether the original is the teacher. The loss must support it.
    """

    name: str
    runs_dir: Path
    group: str
    start_checkpoint: Path
    structure: Structure
    steps: int
    uses_teacher: bool


def build_config(fine_tuning: FineTuning, original: OriginalModel) -> dict[str, Any]:
    """Builds the config of the run as plain values."""
    config = dict(original.config)
    network_config = config["model"]
    if original.plan.logger.accepts("group") and config["logger"].get("group") is None:
        config["logger"] = {**config["logger"], "group": fine_tuning.group}
    config |= {
        "name": fine_tuning.name,
        "runs_dir": str(fine_tuning.runs_dir),
        "test": False,
        "max_restarts_without_progress": None,  # a killed compression does not count as a failure of this run
        "model": {
            "_target_": SMALLER_TARGET,
            "network": network_config,
            "shapes": {name: list(shape) for name, shape in fine_tuning.structure.shapes.items()},
            "ranks": dict(fine_tuning.structure.ranks),
        },
        "initialization": {
            "_target_": "stormproof_train.initialization.from_checkpoint",
            "path": str(fine_tuning.start_checkpoint),
            "sha256": compute_digest(fine_tuning.start_checkpoint),
        },
        "trainer": {**config["trainer"], "max_steps": fine_tuning.steps, "max_epochs": -1},
    }
    if fine_tuning.uses_teacher:
        checkpoint = original.trained_weights.checkpoint
        config["augmentation"] = {
            **config["augmentation"],
            "teacher": {
                "_target_": TEACHER_TARGET,
                "network": network_config,
                "path": str(checkpoint),
                "sha256": compute_digest(checkpoint),
            },
        }
    return config


def run_fine_tuning(fine_tuning: FineTuning, original: OriginalModel, configs_dir: Path, log: Path) -> Path:
    """Executes a fine-tuning run, unless it has finished, as the command line would.

    Returns:
        The path of the final checkpoint.

    Raises:
        RunError: If the run did not finish.
    """
    run_folder = RunFolder(fine_tuning.runs_dir, fine_tuning.name)
    if run_folder.read_summary() is None:
        with atomic_write(configs_dir / f"{fine_tuning.name}.yaml") as file:
            config = redact_settings(build_config(fine_tuning, original))
            file.write(dump_literal_yaml(_HYDRA_CONFIG | config).encode())
        _wait_until_free(run_folder.path)
        print_line(f"{fine_tuning.name}: fine-tuning for {pluralize(fine_tuning.steps, 'step')} ({log})")
        run_subprocess(
            [
                "train",
                "--config-dir",
                str(configs_dir.absolute()),
                "--config-name",
                fine_tuning.name,
                *original.secret_overrides,
            ],
            log,
        )
    return resolve_weights(run_folder.path).checkpoint


def count_steps(original: OriginalModel, training: float) -> int:
    """Returns the number of optimizer steps of a fine-tuning run.

    Args:
        original: Compressed run.
        training: Length relative to the run.
    """
    return max(1, math.ceil(original.steps * training))


def _wait_until_free(folder: Path) -> None:
    """Waits for a run that a killed compression has left running."""
    if Lease.is_active(folder):
        print_line(f"{folder} is still active: waiting until it ends")
    while Lease.is_active(folder):
        time.sleep(0.2)


def dump_literal_yaml(config: Mapping[str, Any]) -> str:
    r"""Dumps plain values as YAML without interpolation, and with all text quoted.

    Example:
        >>> print(dump_literal_yaml({"path": "${oc.env:HOME}", "lr": 0.5, "name": "1e3"}), end="")
        "path": "\\${oc.env:HOME}"
        "lr": 0.5
        "name": "1e3"
    """
    return yaml.dump(_escape(config), Dumper=_QuotingDumper, sort_keys=False, allow_unicode=True, width=1000)


class _QuotingDumper(yaml.SafeDumper):
    """Quotes all text, because YAML parsers disagree on whether ``1e3`` is a number."""


_QuotingDumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def _escape(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: _escape(item) for key, item in value.items()}
    return [_escape(item) for item in value] if isinstance(value, list | tuple) else value
