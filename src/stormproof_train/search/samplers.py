"""Optuna's samplers, by the names of the field."""

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
    "grid": "optuna.samplers.RandomSampler",  # its trials have their parameters already
}
_DEFAULT_ARGUMENTS = {  # what goes with trials that are stopped early, and with settings below a choice
    "tpe": {"multivariate": True, "group": True},
    "cmaes": {"consider_pruned_trials": True, "warn_independent_sampling": False},
    "gp": {"warn_independent_sampling": False},
    "qmc": {"scramble": True, "warn_independent_sampling": False, "warn_asynchronous_seeding": False},
}
_SHARED_SEED_SAMPLERS = {"qmc", "cmaes"}
"""Their draws belong together, so that all trials have one seed."""
_INJECTABLE_ARGUMENTS = frozenset({"seed", "independent_sampler"})


def create_sampler(settings: Settings, number: int) -> BaseSampler:
    """The sampler for one trial.

    It is a new one for each, seeded by the search's seed and the trial's number: whoever asks, and after whatever kill,
    from the same trials comes the same next one.

    Args:
        settings: of the search.
        number: of the trial that it is to propose.

    Raises:
        UserError: if the sampler does not take an argument that it is given.
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
    """Proposes one trial in no search.

    Raises:
        UserError: if the sampler does not work with the arguments that it is given.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions: list[Any] = ["minimize"] * len(settings.all_objectives)
    study = optuna.create_study(sampler=create_sampler(settings, 0), directions=directions)
    try:
        space.suggest(study.ask())
    except (TypeError, ValueError) as error:
        raise UserError(f"search.sampler_arguments={settings.sampler_arguments}: {first_line(error)}") from error


def count_random_trials(settings: Settings) -> int | None:
    """As many of the first trials were drawn whatever the others came to; None: all."""
    if settings.sampler in {"random", "qmc", "grid"}:
        return None
    class_name = _SAMPLER_PATHS[settings.sampler].rpartition(".")[2]
    parameters = inspect.signature(getattr(optuna.samplers, class_name)).parameters
    name = next(candidate for candidate in ("n_startup_trials", "population_size") if candidate in parameters)
    return int((settings.sampler_arguments or {}).get(name, parameters[name].default))
