"""Checks the words of a sweep before its first job."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from stormproof_train.config.redaction import redact_override
from stormproof_train.errors import UserError


def check_sweep(argv: Sequence[str]) -> None:
    """Refuses sweeps in which two jobs would be the same run or share a name.

    Args:
        argv: Words of the command line, with flags. Those that cannot be parsed are left to Hydra.

    Raises:
        UserError: If a value is given twice, or jobs that differ have one name.

    Example:
        >>> check_sweep(["-m", "seed=1,1"])
        Traceback (most recent call last):
        stormproof_train.errors.UserError: seed=1,1 lists the value 1 twice: list each value once
    """
    override_args = [arg for arg in argv if "=" in arg and not arg.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(override_args)
    except OverrideParseException:
        return
    sweeps = [override for override in overrides if override.is_sweep_override()]
    for override in sweeps:
        values = _sweep_values(override)
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{_format_override(override)} lists the value {value} twice: list each value once")
    name_override = next((override for override in overrides if override.key_or_group == "name"), None)
    other_sweeps = [override for override in sweeps if override is not name_override]
    if name_override is not None and other_sweeps and "${" not in _format_override(name_override):
        raise UserError(
            f"{_format_override(name_override)} gives all jobs of {_format_override(other_sweeps[0])} the same name: "
            f"remove it, or include a swept value "
            "(name='run-${seed}')"
        )


def _sweep_values(override: Override) -> list[str]:
    return list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []


def _format_override(override: Override) -> str:
    """As a user types it."""
    return redact_override(str(override.input_line).removeprefix("++"))
