"""The words of a search: which are the search's, which every trial's, and which are searched."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from stormproof_train.config.choices import config_dir, shown
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.overrides import plain
from stormproof_train.config.plan import LENGTHS, Plan, read_plan
from stormproof_train.config.signature_binding import bind
from stormproof_train.errors import UserError
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import Parameter, Space, parsed, read_parameter

NO_SETTINGS = ("callbacks", "logger", "trainer", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
"""What decides how a trial is run: the same for all of them."""
THE_SEARCHS = {"name": "search.name", "runs_dir": "search.folder", "resume": None, "test": None, "tune": None}
"""Settings of a run that the search gives to its trials, and what to set in their place."""
_CONDITIONAL = ("data", "model", "activation", "initialization", "loss", "optimizer", "scheduler")
"""Groups whose choice decides which arguments there are."""


@dataclass(frozen=True)
class Asked:
    """What a command asks for.

    Attributes:
        settings: of the search.
        flags: ``--config-dir`` with its folder.
        fixed: overrides of every trial.
        space: what is searched.
    """

    settings: Settings
    flags: Sequence[str]
    fixed: Sequence[str]
    space: Space


class Composer:
    """Composes configs as the command line of a run does.

    Args:
        conf: the folder of the application's configs.
        flags: ``--config-dir`` with its folder.
    """

    def __init__(self, conf: Path, flags: Sequence[str] = ()) -> None:
        self._conf = conf
        self._extra = config_dir(flags)

    def config(self, words: Sequence[str]) -> DictConfig:
        """The config that overrides come to."""
        searchpath = [f"hydra.searchpath=[file://{self._extra.absolute()}]"] if self._extra else []
        with hydra.initialize_config_dir(str(self._conf), **VERSION_BASE):
            return hydra.compose("config", [*plain(words), *searchpath])

    def plan(self, words: Sequence[str]) -> Plan:
        """The plan of a run, checked as far as a plan can be.

        Raises:
            UserError: what the run itself would say.
        """
        return read_plan(self.config(words))

    def choices(self, group: str) -> Collection[str]:
        """Those of a group."""
        folders = [folder / group for folder in (self._conf, self._extra) if folder is not None]
        return {str(file.relative_to(folder).with_suffix("")) for folder in folders for file in folder.rglob("*.yaml")}


def read_words(words: Sequence[str], conf: Path) -> Asked:
    """Reads the words after ``search``.

    Args:
        words: settings of the search (``search.trials=50``), of its trials, and what is searched.
        conf: the folder of the application's configs.

    Raises:
        UserError: if one of them is wrong.
    """
    overrides, flags = _without_flags(words)
    composer = Composer(conf, flags)
    own = [word for word in overrides if word.lstrip("+").startswith(("search=", "search."))]
    settings = _settings(own, composer)
    others = [*_told_by_config(settings), *(word for word in overrides if word not in own)]
    parameters, fixed = [], []
    for word in others:
        parameter = read_parameter(word, composer.choices)
        key = _key(word)
        if key in THE_SEARCHS:
            instead = THE_SEARCHS[key]
            raise UserError(f"{word}: the search decides that{f', set {instead}' if instead else ''}")
        if key == "seed" and parameter is not None:
            raise UserError(
                f"{word}: the best of several seeds is luck and no setting; the winner is trained again on "
                "search.final_seeds fresh ones"
            )
        if key in NO_SETTINGS and parameter is not None:
            raise UserError(f"{word}: how trials are run is no setting to search: give it one value")
        # the later word counts, as everywhere: the command line over a config
        parameters = [each for each in parameters if each.key != key]
        fixed = [each for each in fixed if parameter is None or _key(each) != key]
        if parameter is None:
            fixed.append(word)
        else:
            parameters.append(parameter)
    _refuse_incomparable(parameters, settings)
    space = Space([_under_its_conditions(each, parameters, fixed, composer) for each in parameters])
    return Asked(settings, flags, fixed, space)


def _refuse_incomparable(parameters: Sequence[Parameter], settings: Settings) -> None:
    """Another loss, or other data, measure something else; shares of two lengths are two things."""
    of_the_loss = [each.key for each in parameters if each.key.partition(".")[0] == "loss" or each.key == "data"]
    if of_the_loss and "val/loss" in settings.told_metrics:
        raise UserError(
            f"{of_the_loss[0]} is searched, and val/loss means something else with each of its values: set "
            "search.objectives=val/accuracy, or val/rmse"
        )
    lengths = [each.key for each in parameters if each.key in LENGTHS]
    if lengths and settings.effective_pruner != "none":
        raise UserError(
            f"{lengths[0]} is searched, and search.pruner={settings.effective_pruner} compares shares of one: set "
            "search.pruner=none, or give it one value"
        )


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _without_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    overrides: list[str] = []
    flags: list[str] = []
    waiting = False
    for word in words:
        if waiting or word.startswith("-"):
            if not waiting and not word.startswith(("--config-dir", "-cd")):
                raise UserError(f"a search takes --config-dir, and not {word}")
            flags.append(word)
            waiting = not waiting and "=" not in word
        else:
            overrides.append(word)
    return overrides, flags


def _settings(words: Sequence[str], composer: Composer) -> Settings:
    chosen = [word.lstrip("+") for word in words if word.lstrip("+").startswith("search=")] or ["search=default"]
    arguments = [f"++{word.lstrip('+')}" for word in words if word.lstrip("+").startswith("search.")]
    for word in words:
        if parsed(word).is_sweep_override():
            raise UserError(f"{word}: a search has one value of its own settings")
    entry = composer.config([f"+{chosen[-1]}", *arguments]).search
    settings: Settings = bind(OmegaConf.to_container(entry, resolve=True), "search").build()  # pyright: ignore[reportArgumentType]
    return settings


def _told_by_config(settings: Settings) -> list[str]:
    """The space of a config: in the grammar of the command line, or a list of values."""
    space = {
        key: ",".join(map(shown, value)) if isinstance(value, list) else value
        for key, value in (settings.space or {}).items()
    }
    return [f"{key}={value}" for key, value in space.items()]


def _under_its_conditions(
    parameter: Parameter, parameters: Sequence[Parameter], fixed: Sequence[str], composer: Composer
) -> Parameter:
    """The parameter with the choices under which it exists: those whose signature has it.

    Raises:
        UserError: if that is none of them.
    """
    group, _, argument = parameter.key.partition(".")
    (choice,) = [each for each in parameters if each.key == group] or [None]
    choices = choice.values() if choice is not None else None
    if not argument or choices is None or group not in _CONDITIONAL:
        return parameter
    having = {each for each in choices if _has(composer, [*fixed, f"{group}={each}"], group, argument)}
    if not having:
        raise UserError(f"{parameter.key}: none of {group}={','.join(choices)} has that argument (--help lists them)")
    return Parameter(
        parameter.key, parameter.distribution, {} if len(having) == len(choices) else {group: frozenset(having)}
    )


def _has(composer: Composer, words: Sequence[str], group: str, argument: str) -> bool:
    config: Any = OmegaConf.to_container(composer.config(words), resolve=True)
    entry = config[group]
    if entry is None:  # of a loss that the data choose
        return False
    return bind(entry, group, complete=False, tensors=2 if group == "loss" else 0).has(argument.partition(".")[0])
