"""Finds the settings of a run that differ from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra

from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.identity import SettingRecord, flatten
from stormproof_train.config.plan import read_plan
from stormproof_train.losses import DEFAULT_LOSSES

GROUPS = ("data", "model", "activation", "initialization", "loss", "optimizer", "scheduler", "logger", "trainer")
"""Config groups of which a run has one choice."""


def find_changed_settings(settings: Mapping[str, Any]) -> list[SettingRecord]:
    """Returns the choices that are not the default, and the arguments that differ from their choice's defaults.

    A choice is recognized by the target that it builds. Other targets, and callbacks that are disabled by default, have
    no defaults. Targets that are not shipped are not imported.

    Args:
        settings: Settings of a run, as in its ``config.yaml``.
    """
    choices = {group: _choices_by_target(group) for group in GROUPS}
    targets = {group: _target_path(settings, group) for group in GROUPS}
    shipped_choices = {group: choices[group][target] for group, target in targets.items() if target in choices[group]}
    default_choices = _default_choices()
    if (
        targets["loss"] in DEFAULT_LOSSES.values() and "loss" in shipped_choices
    ):  # whether selected explicitly or not, the loss matches what the data determine
        default_choices["loss"] = shipped_choices["loss"]
    changes: list[SettingRecord] = [
        {"key": group, "value": choice, "default": default_choices[group]}
        for group, choice in shipped_choices.items()
        if choice != default_choices[group]
    ]
    defaults = _default_arguments(shipped_choices)
    for key, value in flatten(settings):
        if key not in defaults:
            changes.append({"key": key, "value": value})
        elif value != defaults[key]:
            changes.append({"key": key, "value": value, "default": defaults[key]})
    return changes


def _default_arguments(choices: Mapping[str, str]) -> dict[str, Any]:
    """Returns all effective arguments of a command line that selects these choices."""
    overrides = [f"{group}={choice}" for group, choice in choices.items()]
    current_hydra = GlobalHydra.instance().hydra  # of a run, perhaps with config folders of the user
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
            plan = read_plan(hydra.compose("config", overrides), complete=False)
    finally:
        GlobalHydra.instance().hydra = current_hydra
    spec = getattr(plan.data.function, "spec", None)
    return dict(flatten(plan.settings(plan.bind_loss(spec.task if spec else "classification"))))


def _default_choices() -> dict[str, str | None]:
    defaults = yaml.safe_load((conf_dir() / "config.yaml").read_bytes())["defaults"]
    return {group: choice for entry in defaults if isinstance(entry, dict) for group, choice in entry.items()}


def _choices_by_target(group: str) -> dict[str, str]:
    """Returns the shipped choices of a group by target. Of several with the same target, the shortest wins."""
    entries = {file.stem: yaml.safe_load(file.read_bytes()) or {} for file in (conf_dir() / group).glob("*.yaml")}
    by_length = sorted(entries.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    return {entry["_target_"]: name for name, entry in by_length if "_target_" in entry}


def _target_path(settings: Mapping[str, Any], group: str) -> str:
    entry = settings.get(group)
    return str(entry.get("_target_", "")) if isinstance(entry, Mapping) else ""
