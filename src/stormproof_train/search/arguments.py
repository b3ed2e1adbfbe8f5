"""The words of a search: which are the search's, which every trial's, and which are searched."""

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
from stormproof_train.config.plan import LENGTH_KEYS, Plan, read_plan
from stormproof_train.config.signature_binding import bind
from stormproof_train.errors import UserError
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import Parameter, Space, parse_override, read_parameter

UNSEARCHABLE_KEYS = ("callbacks", "logger", "trainer", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
"""What decides how a trial is run: the same for all of them."""
RESERVED_KEYS = {"name": "search.name", "runs_dir": "search.folder", "resume": None, "test": None, "tune": None}
"""Settings of a run that the search gives to its trials, and what to set in their place."""
_CONDITIONAL_GROUPS = ("data", "model", "activation", "initialization", "loss", "optimizer", "scheduler")
"""Groups whose choice decides which arguments there are."""


@dataclass(frozen=True)
class Arguments:
    """What a command asks for.

    Attributes:
        settings: of the search.
        flags: ``--config-dir`` with its folder.
        fixed_overrides: overrides of every trial.
        space: what is searched.
    """

    settings: Settings
    flags: Sequence[str]
    fixed_overrides: Sequence[str]
    space: Space


class Composer:
    """Composes configs as the command line of a run does.

    Args:
        conf: the folder of the application's configs.
        flags: ``--config-dir`` with its folder.
    """

    def __init__(self, conf: Path, flags: Sequence[str] = ()) -> None:
        self._conf_dir = conf
        self._extra_config_dir = find_config_dir(flags)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config that overrides come to."""
        searchpath = (
            [f"hydra.searchpath=[file://{self._extra_config_dir.absolute()}]"] if self._extra_config_dir else []
        )
        with hydra.initialize_config_dir(str(self._conf_dir), **VERSION_BASE):
            return hydra.compose("config", [*normalize_overrides(overrides), *searchpath])

    def compose_plan(self, overrides: Sequence[str]) -> Plan:
        """The plan of a run, checked as far as a plan can be.

        Raises:
            UserError: what the run itself would say.
        """
        return read_plan(self.compose(overrides))

    def list_choices(self, group: str) -> Collection[str]:
        """Those of a group."""
        folders = [folder / group for folder in (self._conf_dir, self._extra_config_dir) if folder is not None]
        return {str(file.relative_to(folder).with_suffix("")) for folder in folders for file in folder.rglob("*.yaml")}


def parse_arguments(arguments: Sequence[str], conf: Path) -> Arguments:
    """Reads the words after ``search``.

    Args:
        arguments: settings of the search (``search.trials=50``), of its trials, and what is searched.
        conf: the folder of the application's configs.

    Raises:
        UserError: if one of them is wrong.
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
            raise UserError(f"{override}: the search decides that{f', set {replacement}' if replacement else ''}")
        if key == "seed" and parameter is not None:
            raise UserError(
                f"{override}: the best of several seeds is luck and no setting; the winner is trained again on "
                "search.final_seeds fresh ones"
            )
        if key in UNSEARCHABLE_KEYS and parameter is not None:
            raise UserError(f"{override}: how trials are run is no setting to search: give it one value")
        # the later word counts, as everywhere: the command line over a config
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
    """Another loss, or other data, measure something else; shares of two lengths are two things."""
    loss_keys = [
        parameter.key
        for parameter in parameters
        if parameter.key.partition(".")[0] == "loss" or parameter.key == "data"
    ]
    if loss_keys and "val/loss" in settings.validation_metrics:
        raise UserError(
            f"{loss_keys[0]} is searched, and val/loss means something else with each of its values: set "
            "search.objectives=val/accuracy, or val/rmse"
        )
    length_keys = [parameter.key for parameter in parameters if parameter.key in LENGTH_KEYS]
    if length_keys and settings.effective_pruner != "none":
        raise UserError(
            f"{length_keys[0]} is searched, and search.pruner={settings.effective_pruner} compares shares of one: set "
            "search.pruner=none, or give it one value"
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
                raise UserError(f"a search takes --config-dir, and not {argument}")
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
            raise UserError(f"{override}: a search has one value of its own settings")
    search_config = composer.compose([f"+{choice_overrides[-1]}", *value_overrides]).search
    settings: Settings = bind(OmegaConf.to_container(search_config, resolve=True), "search").build()  # pyright: ignore[reportArgumentType]
    return settings


def _space_overrides(settings: Settings) -> list[str]:
    """The space of a config: in the grammar of the command line, or a list of values."""
    space = {
        key: ",".join(map(format_override, value)) if isinstance(value, list) else value
        for key, value in (settings.space or {}).items()
    }
    return [f"{key}={value}" for key, value in space.items()]


def _add_conditions(
    parameter: Parameter, parameters: Sequence[Parameter], fixed_overrides: Sequence[str], composer: Composer
) -> Parameter:
    """The parameter with the choices under which it exists: those whose signature has it.

    Raises:
        UserError: if that is none of them.
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
        raise UserError(f"{parameter.key}: none of {group}={','.join(choices)} has that argument (--help lists them)")
    return Parameter(
        parameter.key,
        parameter.distribution,
        {} if len(valid_choices) == len(choices) else {group: frozenset(valid_choices)},
    )


def _has_argument(composer: Composer, overrides: Sequence[str], group: str, argument: str) -> bool:
    config: Any = OmegaConf.to_container(composer.compose(overrides), resolve=True)
    group_config = config[group]
    if group_config is None:  # of a loss that the data choose
        return False
    return bind(group_config, group, complete=False, num_tensor_args=2 if group == "loss" else 0).accepts(
        argument.partition(".")[0]
    )
