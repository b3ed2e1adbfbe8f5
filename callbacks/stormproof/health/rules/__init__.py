"""The default diagnosis rules. Each module in this folder defines one rule as ``RULE``."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from stormproof.health.rule import Rule


def default_rules() -> list[Rule]:
    """Returns the rules that :class:`stormproof.TrainingHealth` applies by default, one for each problem.

    Example:
        >>> from stormproof import TrainingHealth
        >>> health = TrainingHealth(rules=[rule for rule in default_rules() if rule.problem != "plateau"])
    """
    return list(_load_rules())


@cache
def _load_rules() -> tuple[Rule, ...]:
    return tuple(import_module(f"{__name__}.{module.name}").RULE for module in iter_modules(__path__))
