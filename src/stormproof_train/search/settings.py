"""What a search is told, and what it takes where it is told nothing."""

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
    """The settings of a search, ``search.<name>=`` on the command line.

    Attributes:
        space: by key of a setting, its values in Hydra's sweep grammar; those on the command line join them.
        name: of the search's folder; null: ``<data>-<model>-<8 hex digits of its identity>``.
        folder: of all searches.
        trials: how many there shall be; null: 50, of a grid all. As all limits, it may grow.
        sampler: proposes parameters: tpe, gp, cmaes, nsga2, nsga3, qmc, random, or grid, which takes all there are.
        sampler_arguments: of Optuna's sampler, by name (``{n_startup_trials: 20}``).
        pruner: stops the hopeless early: asha, hyperband, median or none; null: asha, with gp, nsga2, nsga3 or several
            objectives none.
        reduction: of those that come to a rung, one in so many goes on; at least 2.
        rungs: before the end: with 3 and a reduction of 3 they lie at 1/27, 1/9 and 1/3 of a run's length.
        objectives: logged names (``val/loss``), ``parameters``, ``latency`` (seconds for one sample on this machine).
        constraints: such as ``["parameters<=100000"]``.
        max_steps: optimizer steps of all trials; null: no limit.
        max_hours: since the search first began; null: no limit.
        max_gpu_hours: of all trials' devices; null: no limit.
        final_seeds: fresh seeds on which the winner and the default are trained again; 0 for none.
        workers: processes on this machine.
        storage: an SQLAlchemy URL, such as ``postgresql+psycopg://host/database``; null: SQLite in the search's folder.
        seed: of what the sampler draws.
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
        """Refuses what cannot be meant."""
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name} cannot be a folder's name: use letters, digits, - and _")
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
                raise ValueError(f"{name}={value} should be a whole number from {minimum}")
        for name in ("max_hours", "max_gpu_hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} should be above 0")
        if self.final_seeds == 1:
            raise ValueError("final_seeds=1: one seed shows no difference from chance; take 2 or more, better 5, or 0")
        _ = self.all_constraints  # read once, so that a mistake shows here
        if not self.all_objectives:
            raise ValueError("objectives=[]: name one, as val/loss")
        if self.sampler in _UNPRUNED_SAMPLERS and self.pruner in {"asha", "hyperband"}:
            raise ValueError(
                f"sampler={self.sampler} learns from trials that came to their end, pruner={self.pruner} leaves few of "
                "them: pruner=none or median, or sampler=tpe"
            )
        if len(self.all_objectives) > 1 and self.pruner not in {None, "none"}:
            raise ValueError(f"pruner={self.pruner} ranks trials by one objective, and there are several: pruner=none")

    @property
    def all_objectives(self) -> list[Objective]:
        """What is to be small, or large."""
        return [read_objective(name) for name in _as_list(self.objectives)]

    @property
    def all_constraints(self) -> list[Constraint]:
        """What a trial has to hold to be a winner."""
        return [read_constraint(text) for text in _as_list(self.constraints)]

    @property
    def validation_metrics(self) -> list[str]:
        """What a run tells of each validation: the objective first."""
        return [name for name in self._metric_names() if name.startswith("val/")]

    def uses_metric(self, name: str) -> bool:
        """Whether a number of a trial is an objective, or constrained."""
        return name in self._metric_names()

    def _metric_names(self) -> list[str]:
        return list(dict.fromkeys(criterion.name for criterion in (*self.all_objectives, *self.all_constraints)))

    @property
    def effective_pruner(self) -> PrunerName:
        """The one that is used."""
        supports_pruning = len(self.all_objectives) == 1 and self.sampler not in _UNPRUNED_SAMPLERS
        return self.pruner or ("asha" if supports_pruning else "none")

    def result_settings(self) -> dict[str, Any]:
        """What makes another search of it; how long it goes on, where and by how many does not."""
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
