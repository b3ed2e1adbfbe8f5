"""Defines the settings of a search and their defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stormproof_train.search.objectives import Constraint, Objective, read_constraint, read_objective

SamplerName = Literal["tpe", "gp", "cmaes", "nsga2", "nsga3", "qmc", "random", "grid"]
PrunerName = Literal["asha", "hyperband", "median", "none"]
DEFAULT_TRIALS = 50
_UNPRUNED_SAMPLERS = {"gp", "nsga2", "nsga3"}
_NAME = re.compile(r"[\w][\w.+-]{0,99}")


@dataclass(frozen=True)
class Settings:
    """Settings of a search, ``search.<name>=`` on the command line.

    Attributes:
        space: Values by key of a setting, in Hydra's sweep grammar. Values on the command line are added.
        name: Name of the search's folder. null: ``<data>-<model>-<8 hex digits of its identity>``.
        folder: Folder of all searches.
        trials: Number of trials. null: 50, or the whole grid. Like all limits, it can be raised later.
        sampler: Proposes parameters: tpe, gp, cmaes, nsga2, nsga3, qmc, random, or grid (all combinations).
        sampler_arguments: Arguments of Optuna's sampler by name (``{n_startup_trials: 20}``).
        pruner: Stops unpromising trials early: asha, hyperband, median or none. null: asha, or none with gp, nsga2,
            nsga3 or several objectives.
        reduction: Inverse of the share of trials that pass a rung. Must be at least 2.
        rungs: Number of rungs. 3 rungs with a reduction of 3 are at 1/27, 1/9 and 1/3 of a run's length.
        objectives: Logged names (``val/loss``), ``parameters``, ``latency`` (seconds per sample on this machine).
        constraints: Constraints such as ``["parameters<=100000"]``.
        max_steps: Maximum optimizer steps of all trials. null: unlimited.
        max_hours: Maximum hours since the search started. null: unlimited.
        max_gpu_hours: Maximum GPU hours of all trials. null: unlimited.
        final_seeds: Fresh seeds on which the winner and the default are trained again. 0 disables this.
        workers: Number of worker processes on this machine.
        storage: SQLAlchemy URL, such as ``postgresql+psycopg://host/database``. null: SQLite in the search's folder.
        seed: Seed of the sampler.
    """

    space: Mapping[str, Any] | None = None
    name: str | None = None
    folder: str = "searches"
    trials: int | None = None
    sampler: SamplerName = "tpe"
    sampler_arguments: Mapping[str, Any] | None = None
    pruner: PrunerName | None = None
    reduction: int = 3
    rungs: int = 3
    objectives: str | Sequence[str] = "val/loss"
    constraints: str | Sequence[str] = ()
    max_steps: int | None = None
    max_hours: float | None = None
    max_gpu_hours: float | None = None
    final_seeds: int = 5
    workers: int = 1
    storage: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Validates the settings."""
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name} is not a valid folder name: use letters, digits, - and _")
        for name, minimum in (
            ("trials", 1),
            ("reduction", 2),
            ("rungs", 1),
            ("max_steps", 1),
            ("final_seeds", 0),
            ("workers", 1),
        ):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < minimum):
                raise ValueError(f"{name}={value} must be an integer of at least {minimum}")
        for name in ("max_hours", "max_gpu_hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive")
        if self.final_seeds == 1:
            raise ValueError(
                "final_seeds=1 cannot distinguish a difference from chance: use 0, or at least 2, better 5"
            )
        _ = self.all_constraints  # parsed here to report errors early
        if not self.all_objectives:
            raise ValueError("objectives=[] must contain an objective, such as val/loss")
        if self.sampler in _UNPRUNED_SAMPLERS and self.pruner in {"asha", "hyperband"}:
            raise ValueError(
                f"sampler={self.sampler} learns from complete trials, but pruner={self.pruner} completes only a few: "
                "use pruner=none or median, or sampler=tpe"
            )
        if len(self.all_objectives) > 1 and self.pruner not in {None, "none"}:
            raise ValueError(
                f"pruner={self.pruner} supports one objective, got {len(self.all_objectives)}: use pruner=none"
            )

    @property
    def all_objectives(self) -> list[Objective]:
        """Objectives to optimize."""
        return [read_objective(name) for name in _as_list(self.objectives)]

    @property
    def all_constraints(self) -> list[Constraint]:
        """Constraints that the winner must satisfy."""
        return [read_constraint(text) for text in _as_list(self.constraints)]

    @property
    def validation_metrics(self) -> list[str]:
        """Validation metrics that runs report, the objective first."""
        return [name for name in self._metric_names() if name.startswith("val/")]

    def uses_metric(self, name: str) -> bool:
        """Returns True if a metric is an objective or has a constraint."""
        return name in self._metric_names()

    def _metric_names(self) -> list[str]:
        return list(dict.fromkeys(criterion.name for criterion in (*self.all_objectives, *self.all_constraints)))

    @property
    def effective_pruner(self) -> PrunerName:
        """Pruner that is used."""
        supports_pruning = len(self.all_objectives) == 1 and self.sampler not in _UNPRUNED_SAMPLERS
        return self.pruner or ("asha" if supports_pruning else "none")

    def result_settings(self) -> dict[str, Any]:
        """Returns the settings that identify the search. Limits, storage and number of workers are excluded."""
        return {
            "sampler": self.sampler,
            "sampler_arguments": dict(self.sampler_arguments or {}),
            "pruner": self.effective_pruner,
            "reduction": self.reduction,
            "rungs": self.rungs,
            "objectives": [criterion.name for criterion in self.all_objectives],
            "constraints": [str(criterion) for criterion in self.all_constraints],
            "seed": self.seed,
        }


def _as_list(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
