"""Checks the arguments of a sweep before its first job."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from stormproof_train.config.redaction import redact_override
from stormproof_train.errors import UserError


def check_sweep(argv: Sequence[str]) -> None:
    """Rejects sweeps in which two jobs would be the same run or share a name.

    Args:
        argv: Command-line arguments with flags. Arguments that cannot be parsed are left to Hydra.

    Raises:
        UserError: If a value is listed twice, different jobs have the same name, or a setting is tuned.

    Example:
        >>> check_sweep(["-m", "seed=1,1"])
        Traceback (most recent call last):
        stormproof_train.errors.UserError: seed=1,1 lists the value 1 twice. List each value once.
    """
    override_args = [arg for arg in argv if "=" in arg and not arg.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(override_args)
    except OverrideParseException:
        return
    for override in overrides:
        if override.key_or_group == "tune" and override.value() is not None:
            raise UserError(f"{_format_override(override)} is not possible in a sweep. Remove it, or remove -m.")
    sweeps = [override for override in overrides if override.is_sweep_override()]
    for override in sweeps:
        values = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{_format_override(override)} lists the value {value} twice. List each value once.")
    name_override = next((override for override in overrides if override.key_or_group == "name"), None)
    other_sweeps = [override for override in sweeps if override is not name_override]
    if name_override is not None and other_sweeps and "${" not in _format_override(name_override):
        raise UserError(
            f"{_format_override(name_override)} gives all jobs of {_format_override(other_sweeps[0])} the same name. "
            "Remove it, or include a swept value (name='run-${seed}')."
        )


def _format_override(override: Override) -> str:
    """Returns an override in the form that users type."""
    return redact_override(str(override.input_line).removeprefix("++"))
