"""Parses the arguments of a compression: its own settings and the overrides of its fine-tuning runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from stormproof_train.compression.settings import Settings, TargetName
from stormproof_train.config.settings import CONFIG_KEYS, LENGTH_KEYS
from stormproof_train.config.signature_binding import bind
from stormproof_train.errors import UserError, rank_by_similarity

_SETTINGS_PATH = f"{Settings.__module__}.{Settings.__name__}"
_SETTING_NAMES = tuple(inspect.signature(Settings).parameters)


@dataclass(frozen=True)
class Arguments:
    """Parsed arguments of the ``compress`` command."""

    settings: Settings
    run_overrides: Sequence[str]


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Parses the arguments after ``compress``.

    Args:
        arguments: Settings (``run=runs/mine``, ``budget=1pp``) and overrides of the fine-tuning runs
            (``optimizer.lr=…``).

    Raises:
        UserError: If an argument is invalid, or ``run`` is missing.
    """
    settings_config, run_overrides = OmegaConf.create(), []
    for argument in arguments:
        key, sign, _ = argument.partition("=")
        group = key.lstrip("+").partition(".")[0]
        if not sign:
            raise UserError(
                f"{argument} is not a setting: write {'=…, '.join(_SETTING_NAMES[:4])}=… (--help lists all)"
            )
        if group in _SETTING_NAMES:
            override = OverridesParser.create().parse_override(argument)
            if override.is_sweep_override() or override.is_delete():
                raise UserError(f"{argument} must be a single value, or a list: {key}=[…]")
            OmegaConf.update(settings_config, key.lstrip("+"), override.value(), force_add=True)
        elif key.lstrip("+") in LENGTH_KEYS:
            raise UserError(f"{argument}: set the length of fine-tuning relative to the run, such as training=0.5")
        elif group in CONFIG_KEYS:
            run_overrides.append(argument)
        else:
            suggestion = rank_by_similarity(group, [*_SETTING_NAMES, *CONFIG_KEYS])[0]
            raise UserError(f"{key} is not a setting of compress; did you mean {suggestion}?")
    return Arguments(_build_settings(OmegaConf.to_container(settings_config)), run_overrides)


def _build_settings(values: Any) -> Settings:
    if not values.get("run"):
        raise UserError("compress needs run=…: the folder of a run, or a checkpoint of a run")
    if isinstance(values.get("methods"), str):
        values["methods"] = [values["methods"]]
    for key in values.get("target") or {}:
        if key not in get_args(TargetName):
            raise UserError(
                f"target.{key} is unknown; did you mean target.{rank_by_similarity(key, get_args(TargetName))[0]}?"
            )
    return bind({"_target_": _SETTINGS_PATH, **values}, "compress").build()
