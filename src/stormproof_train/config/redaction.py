"""Replaces passwords, keys and tokens in settings before they are written or sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stormproof.redaction import is_secret_name, make_placeholder, redact_text

_PLACEHOLDER = re.compile(r"\bsecret-[0-9a-f]{8}\b")


def redact_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces secrets in settings by placeholders. Equal secrets have equal placeholders.

    The following are secrets:

    - Values of keys such as ``password``, ``api_key``, ``X-Api-Key``, ``hfToken`` or ``credentials``, except true,
      false, null and numbers of tokens.
    - In any text, the user and password in a URL, and the value after such a key and ``=`` or a colon.

    Args:
        settings: Nested mappings and lists of plain values.

    Example:
        >>> redact_settings({"data": {"path": "https://data.example.org/a.csv", "api_key": "hunter2"}})
        {'data': {'path': 'https://data.example.org/a.csv', 'api_key': 'secret-de2779bc'}}
    """
    return {
        key: _redact_value(value) if is_secret_name(key) and not _is_token_index(key, value) else _redact_nested(value)
        for key, value in settings.items()
    }


def redact_override(override: str) -> str:
    """Replaces secrets in an override ``key=value`` by placeholders.

    Example:
        >>> redact_override("data.password=hunter2"), redact_override("seed=1")
        ('data.password=secret-de2779bc', 'seed=1')
    """
    key, equals, value = override.partition("=")
    if equals and is_secret_name(key.rpartition(".")[2]):
        return f"{key}={make_placeholder(value)}"
    return redact_text(override)


def contains_placeholder(value: Any) -> bool:
    """Returns True if a value contains the placeholder of a secret.

    Example:
        >>> contains_placeholder("https://secret-81f1e5a3@data.example.org"), contains_placeholder(["secret"])
        (True, False)
    """
    if isinstance(value, list | tuple):
        return any(map(contains_placeholder, value))
    return isinstance(value, str) and _PLACEHOLDER.search(value) is not None


def is_placeholder(value: Any) -> bool:
    """Returns True if the whole value is the placeholder of a secret."""
    return isinstance(value, str) and _PLACEHOLDER.fullmatch(value) is not None


def _is_token_index(key: str, value: Any) -> bool:
    """Returns True for numbers of tokens in a vocabulary, such as ``pad_token=0``."""
    return isinstance(value, int) and key.lower().endswith("token")


def _redact_value(value: Any) -> Any:
    """Replaces all values in a nested value, except booleans and None."""
    if isinstance(value, Mapping):
        return {key: _redact_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_value(item) for item in value]
    return value if value is None or isinstance(value, bool) else make_placeholder(str(value))


def _redact_nested(value: Any) -> Any:
    if isinstance(value, Mapping):
        return redact_settings(value)
    if isinstance(value, list | tuple):
        return [_redact_nested(item) for item in value]
    return redact_text(value) if isinstance(value, str) else value
