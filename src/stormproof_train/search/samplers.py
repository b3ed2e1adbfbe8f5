"""Creates Optuna's samplers by name."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler

from stormproof_train.config.signature_binding import bind
from stormproof_train.errors import UserError, first_line
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import Space

_SAMPLER_PATHS = {
    "tpe": "optuna.samplers.TPESampler",
    "gp": "optuna.samplers.GPSampler",
    "cmaes": "optuna.samplers.CmaEsSampler",
    "nsga2": "optuna.samplers.NSGAIISampler",
    "nsga3": "optuna.samplers.NSGAIIISampler",
    "qmc": "optuna.samplers.QMCSampler",
    "random": "optuna.samplers.RandomSampler",
    "grid": "optuna.samplers.RandomSampler",  # grid trials are enqueued with all of their parameters
}
_DEFAULT_ARGUMENTS = {  # suited to trials that are stopped early, and to conditional parameters
    "tpe": {"multivariate": True, "group": True},
    "cmaes": {"consider_pruned_trials": True, "warn_independent_sampling": False},
    "gp": {"warn_independent_sampling": False},
    "qmc": {"scramble": True, "warn_independent_sampling": False, "warn_asynchronous_seeding": False},
}
_SHARED_SEED_SAMPLERS = {"qmc", "cmaes"}
"""Samplers whose draws depend on each other, so that all trials share a seed."""
_INJECTABLE_ARGUMENTS = frozenset({"seed", "independent_sampler"})


def create_sampler(settings: Settings, number: int) -> BaseSampler:
    """Creates the sampler for one trial.

    Each trial has a new sampler, seeded by the seed of the search and the number of the trial. The next proposal
    therefore depends only on the existing trials, not on the worker or on interruptions.

    Raises:
        UserError: If the sampler does not accept one of its arguments.
    """
    trial_seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    arguments = {**_DEFAULT_ARGUMENTS.get(settings.sampler, {}), **(settings.sampler_arguments or {})}
    target = bind(
        {"_target_": _SAMPLER_PATHS[settings.sampler], **arguments}, "search.sampler_arguments", _INJECTABLE_ARGUMENTS
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return target.build(
            seed=settings.seed if settings.sampler in _SHARED_SEED_SAMPLERS else trial_seed,
            independent_sampler=optuna.samplers.RandomSampler(trial_seed)
            if settings.sampler in {*_SHARED_SEED_SAMPLERS, "gp"}
            else None,
        )


def check_sampler(settings: Settings, space: Space) -> None:
    """Proposes one trial in a temporary study to check the arguments of the sampler.

    Raises:
        UserError: If the sampler rejects its arguments.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions: list[Any] = ["minimize"] * len(settings.all_objectives)
    study = optuna.create_study(sampler=create_sampler(settings, 0), directions=directions)
    try:
        space.suggest(study.ask())
    except (TypeError, ValueError) as error:
        raise UserError(f"search.sampler_arguments={settings.sampler_arguments}: {first_line(error)}") from error


def count_random_trials(settings: Settings) -> int | None:
    """Returns the number of initial trials that are drawn independently of results, or None if all are."""
    if settings.sampler in {"random", "qmc", "grid"}:
        return None
    class_name = _SAMPLER_PATHS[settings.sampler].rpartition(".")[2]
    parameters = inspect.signature(getattr(optuna.samplers, class_name)).parameters
    name = next(candidate for candidate in ("n_startup_trials", "population_size") if candidate in parameters)
    return int((settings.sampler_arguments or {}).get(name, parameters[name].default))
