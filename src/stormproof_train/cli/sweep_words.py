"""Checks the words of a sweep before its first job."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from stormproof_train.config.redaction import without_secret
from stormproof_train.errors import UserError


def check_sweep(words: Sequence[str]) -> None:
    """Refuses sweeps in which two jobs would be the same run or share a name.

    Args:
        words: Words of the command line, with flags. Those that cannot be parsed are left to Hydra.

    Raises:
        UserError: If a value is given twice, or jobs that differ have one name.

    Example:
        >>> check_sweep(["-m", "seed=1,1"])
        Traceback (most recent call last):
        stormproof_train.errors.UserError: seed=1,1 lists the value 1 twice: list each value once
    """
    settings = [word for word in words if "=" in word and not word.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(settings)
    except OverrideParseException:
        return
    swept = [override for override in overrides if override.is_sweep_override()]
    for override in swept:
        values = _values(override)
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{_word(override)} lists the value {value} twice: list each value once")
    named = next((override for override in overrides if override.key_or_group == "name"), None)
    others = [override for override in swept if override is not named]
    if named is not None and others and "${" not in _word(named):
        raise UserError(
            f"{_word(named)} gives all jobs of {_word(others[0])} the same name: remove it, or include a swept value "
            "(name='run-${seed}')"
        )


def _values(override: Override) -> list[str]:
    return list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []


def _word(override: Override) -> str:
    """As a user types it."""
    return without_secret(str(override.input_line).removeprefix("++"))
