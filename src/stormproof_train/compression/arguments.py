"""The words of a compression: which are its own, and which are those of its fine-tuning runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from stormproof_train.compression.settings import Settings, Targeted
from stormproof_train.config.plan import KEYS, LENGTHS
from stormproof_train.config.signature_binding import bind
from stormproof_train.errors import UserError, nearest

_PATH = f"{Settings.__module__}.{Settings.__name__}"
_OWN = tuple(inspect.signature(Settings).parameters)


@dataclass(frozen=True)
class Asked:
    """What a command asks for.

    Attributes:
        settings: of the compression.
        of_the_runs: overrides of the fine-tuning runs.
    """

    settings: Settings
    of_the_runs: Sequence[str]


def read_words(words: Sequence[str]) -> Asked:
    """Reads the words after ``compress``.

    Args:
        words: settings (``run=runs/mine``, ``budget=1pp``), and overrides of the fine-tuning runs (``optimizer.lr=…``).

    Raises:
        UserError: if one of them is wrong, or there is no run.
    """
    own, others = OmegaConf.create(), []
    for word in words:
        key, sign, _ = word.partition("=")
        group = key.lstrip("+").partition(".")[0]
        if not sign:
            raise UserError(f"{word} says nothing to compress: write {'=…, '.join(_OWN[:4])}=… (--help lists all)")
        if group in _OWN:
            override = OverridesParser.create().parse_override(word)
            if override.is_sweep_override() or override.is_delete():
                raise UserError(f"{word}: one value is wanted, or a list: {key}=[…]")
            OmegaConf.update(own, key.lstrip("+"), override.value(), force_add=True)
        elif key.lstrip("+") in LENGTHS:
            raise UserError(f"{word}: training=0.5 sets the length of a fine-tuning, in lengths of the run")
        elif group in KEYS:
            others.append(word)
        else:
            close = nearest(group, [*_OWN, *KEYS])[0]
            raise UserError(f"{key}= is nothing that a compression takes; did you mean {close}?")
    return Asked(_settings(OmegaConf.to_container(own)), others)


def _settings(given: Any) -> Settings:
    if not given.get("run"):
        raise UserError("compress needs run=…: a run's folder, or a checkpoint of a run")
    if isinstance(given.get("methods"), str):
        given["methods"] = [given["methods"]]
    for key in given.get("target") or {}:
        if key not in get_args(Targeted):
            raise UserError(f"target.{key}= is no target; did you mean target.{nearest(key, get_args(Targeted))[0]}?")
    return bind({"_target_": _PATH, **given}, "compress").build()
