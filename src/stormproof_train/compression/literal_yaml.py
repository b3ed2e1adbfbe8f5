"""Writes configs that Hydra reads back literally."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml


def dump_literal_yaml(config: Mapping[str, Any]) -> str:
    r"""Dumps plain values as YAML without interpolation, and with all text quoted.

    Args:
        config: Plain values.

    Example:
        >>> print(dump_literal_yaml({"path": "${oc.env:HOME}", "lr": 0.5, "name": "1e3"}), end="")
        "path": "\\${oc.env:HOME}"
        "lr": 0.5
        "name": "1e3"
    """
    return yaml.dump(_escape(config), Dumper=_QuotingDumper, sort_keys=False, allow_unicode=True, width=1000)


class _QuotingDumper(yaml.SafeDumper):
    """Quotes all text, because YAML parsers disagree on whether ``1e3`` is a number."""


_QuotingDumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def _escape(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: _escape(item) for key, item in value.items()}
    return [_escape(item) for item in value] if isinstance(value, list | tuple) else value
