"""Parses the arguments of a search: its own settings, the fixed overrides of all trials, and the search space."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from stormproof_train.config.choices import find_config_dir, format_override
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.overrides import normalize_overrides
from stormproof_train.config.plan import Plan, read_plan
from stormproof_train.config.settings import LENGTH_KEYS
from stormproof_train.config.signature_binding import bind
from stormproof_train.errors import UserError
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import Parameter, Space, parse_override, read_parameter

UNSEARCHABLE_KEYS = ("callbacks", "logger", "trainer", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
"""Settings that determine how trials are run. They must be the same for all trials."""
RESERVED_KEYS = {"name": "search.name", "runs_dir": "search.folder", "resume": None, "test": None, "tune": None}
"""Settings of a run that the search sets for its trials, with the setting of the search to use instead."""
_CONDITIONAL_GROUPS = ("data", "model", "activation", "initialization", "loss", "optimizer", "scheduler")
"""Groups whose choice determines which arguments exist."""


@dataclass(frozen=True)
class Arguments:
    """Parsed arguments of the ``search`` command.

    Attributes:
        settings: Settings of the search.
        flags: ``--config-dir`` and its folder, if given.
        fixed_overrides: Overrides of every trial.
        space: Search space.
    """

    settings: Settings
    flags: Sequence[str]
    fixed_overrides: Sequence[str]
    space: Space


class Composer:
    """Composes configs as the command line of a run does.

    Args:
        conf: Folder of the application's configs.
        flags: ``--config-dir`` and its folder, if given.
    """

    def __init__(self, conf: Path, flags: Sequence[str] = ()) -> None:
        self._conf_dir = conf
        self._extra_config_dir = find_config_dir(flags)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Composes the config for a list of overrides."""
        searchpath = (
            [f"hydra.searchpath=[file://{self._extra_config_dir.absolute()}]"] if self._extra_config_dir else []
        )
        with hydra.initialize_config_dir(str(self._conf_dir), **VERSION_BASE):
            return hydra.compose("config", [*normalize_overrides(overrides), *searchpath])

    def compose_plan(self, overrides: Sequence[str]) -> Plan:
        """Returns the plan of a run, checked as far as possible without building it.

        Raises:
            UserError: If the run would reject the overrides.
        """
        return read_plan(self.compose(overrides))

    def list_choices(self, group: str) -> Collection[str]:
        """Returns the choices of a config group."""
        folders = [folder / group for folder in (self._conf_dir, self._extra_config_dir) if folder is not None]
        return {str(file.relative_to(folder).with_suffix("")) for folder in folders for file in folder.rglob("*.yaml")}


def parse_arguments(arguments: Sequence[str], conf: Path) -> Arguments:
    """Parses the arguments after ``search``.

    Args:
        arguments: Settings of the search (``search.trials=50``), overrides of its trials, and the search space.
        conf: Folder of the application's configs.

    Raises:
        UserError: If an argument is invalid.
    """
    overrides, flags = _split_flags(arguments)
    composer = Composer(conf, flags)
    search_overrides = [override for override in overrides if override.lstrip("+").startswith(("search=", "search."))]
    settings = _read_settings(search_overrides, composer)
    trial_overrides = [
        *_space_overrides(settings),
        *(override for override in overrides if override not in search_overrides),
    ]
    parameters, fixed_overrides = [], []
    for override in trial_overrides:
        parameter = read_parameter(override, composer.list_choices)
        key = _override_key(override)
        if key in RESERVED_KEYS:
            replacement = RESERVED_KEYS[key]
            raise UserError(f"{override}: the search sets this itself{f', use {replacement}' if replacement else ''}")
        if key == "seed" and parameter is not None:
            raise UserError(
                f"{override}: the seed cannot be searched, because the best of several seeds is a matter of chance; "
                "the winner is trained again on search.final_seeds fresh seeds"
            )
        if key in UNSEARCHABLE_KEYS and parameter is not None:
            raise UserError(f"{override}: this setting determines how trials are run and must have a single value")
        # later overrides win, as everywhere: the command line over a config
        parameters = [existing_parameter for existing_parameter in parameters if existing_parameter.key != key]
        fixed_overrides = [
            fixed_override
            for fixed_override in fixed_overrides
            if parameter is None or _override_key(fixed_override) != key
        ]
        if parameter is None:
            fixed_overrides.append(override)
        else:
            parameters.append(parameter)
    _check_comparable(parameters, settings)
    space = Space([_add_conditions(parameter, parameters, fixed_overrides, composer) for parameter in parameters])
    return Arguments(settings, flags, fixed_overrides, space)


def _check_comparable(parameters: Sequence[Parameter], settings: Settings) -> None:
    """Checks that trials are comparable: same loss and data, and, with a pruner, the same length."""
    loss_keys = [
        parameter.key
        for parameter in parameters
        if parameter.key.partition(".")[0] == "loss" or parameter.key == "data"
    ]
    if loss_keys and "val/loss" in settings.validation_metrics:
        raise UserError(
            f"{loss_keys[0]} is searched, so val/loss is not comparable between trials: set "
            "search.objectives=val/accuracy or val/rmse"
        )
    length_keys = [parameter.key for parameter in parameters if parameter.key in LENGTH_KEYS]
    if length_keys and settings.effective_pruner != "none":
        raise UserError(
            f"{length_keys[0]} is searched, but search.pruner={settings.effective_pruner} compares trials of equal "
            "length: set search.pruner=none, or give it a single value"
        )


def _override_key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    overrides: list[str] = []
    flags: list[str] = []
    expects_value = False
    for argument in arguments:
        if expects_value or argument.startswith("-"):
            if not expects_value and not argument.startswith(("--config-dir", "-cd")):
                raise UserError(f"unknown option {argument}: a search accepts only --config-dir")
            flags.append(argument)
            expects_value = not expects_value and "=" not in argument
        else:
            overrides.append(argument)
    return overrides, flags


def _read_settings(overrides: Sequence[str], composer: Composer) -> Settings:
    choice_overrides = [
        override.lstrip("+") for override in overrides if override.lstrip("+").startswith("search=")
    ] or ["search=default"]
    value_overrides = [
        f"++{override.lstrip('+')}" for override in overrides if override.lstrip("+").startswith("search.")
    ]
    for override in overrides:
        if parse_override(override).is_sweep_override():
            raise UserError(f"{override}: a setting of the search must have a single value")
    search_config = composer.compose([f"+{choice_overrides[-1]}", *value_overrides]).search
    settings: Settings = bind(OmegaConf.to_container(search_config, resolve=True), "search").build()  # pyright: ignore[reportArgumentType]
    return settings


def _space_overrides(settings: Settings) -> list[str]:
    """Returns the search space of a config as overrides. Values use the command-line grammar or are lists."""
    space = {
        key: ",".join(map(format_override, value)) if isinstance(value, list) else value
        for key, value in (settings.space or {}).items()
    }
    return [f"{key}={value}" for key, value in space.items()]


def _add_conditions(
    parameter: Parameter, parameters: Sequence[Parameter], fixed_overrides: Sequence[str], composer: Composer
) -> Parameter:
    """Adds the choices under which a parameter exists, because their signature has it.

    Raises:
        UserError: If no searched choice has the argument.
    """
    group, _, argument = parameter.key.partition(".")
    (group_parameter,) = [candidate for candidate in parameters if candidate.key == group] or [None]
    choices = group_parameter.values() if group_parameter is not None else None
    if not argument or choices is None or group not in _CONDITIONAL_GROUPS:
        return parameter
    valid_choices = {
        candidate
        for candidate in choices
        if _has_argument(composer, [*fixed_overrides, f"{group}={candidate}"], group, argument)
    }
    if not valid_choices:
        raise UserError(f"{parameter.key}: none of {group}={','.join(choices)} has this argument (--help lists them)")
    return Parameter(
        parameter.key,
        parameter.distribution,
        {} if len(valid_choices) == len(choices) else {group: frozenset(valid_choices)},
    )


def _has_argument(composer: Composer, overrides: Sequence[str], group: str, argument: str) -> bool:
    config: Any = OmegaConf.to_container(composer.compose(overrides), resolve=True)
    group_config = config[group]
    if group_config is None:  # the loss that the data determine
        return False
    return bind(group_config, group, complete=False, num_tensor_args=2 if group == "loss" else 0).accepts(
        argument.partition(".")[0]
    )
