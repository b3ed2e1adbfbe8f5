"""Passwords, keys and tokens among the arguments, which no file and no server is told."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:passwords?|passwd|pwd|passphrases?|secrets?|token|credentials?|authorization|auth|bearer|cookies?"
    r"|(?:api|access|account|auth|private|secret|signing)_?keys?|signature|sig)$",
    re.IGNORECASE,
)
_URL_USER = re.compile(r"(?<=://)[^/?#\s]+(?=@)")
_PLACEHOLDER = re.compile(r"\bsecret-[0-9a-f]{8}\b")
_SECRET_IN_TEXT = re.compile(r"(?<![\w.-])([\w-]+)(=|:\s*)([^&\s#,;{}\[\]/'\"]+)")
_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|-")


def redact_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with what stands for a secret in the place of each: of the same one the same, of another one another.

    Secret is what a key like ``password``, ``api_key``, ``X-Api-Key``, ``hfToken`` or ``credentials`` holds, but for
    true, false, null and a token's number; and in any text the user of a URL, with the password, and what stands behind
    a key like these and ``=`` or a colon.

    Args:
        settings: nested mappings and lists of plain values.

    Example:
        >>> redact_settings({"data": {"path": "https://data.example.org/a.csv", "api_key": "hunter2"}})
        {'data': {'path': 'https://data.example.org/a.csv', 'api_key': 'secret-de2779bc'}}
    """
    return {
        key: _redact_value(value) if _is_secret_name(key) and not _is_token_index(key, value) else _redact_nested(value)
        for key, value in settings.items()
    }


def redact_text(text: str) -> str:
    """A text whose URLs tell neither users nor keys.

    Example:
        >>> redact_text("no answer from postgresql://me:hunter2@db/runs")
        'no answer from postgresql://secret-bb5163fa@db/runs'
    """
    text = _URL_USER.sub(lambda match: _make_placeholder(match[0]), text)
    return _SECRET_IN_TEXT.sub(
        lambda match: f"{match[1]}{match[2]}{_make_placeholder(match[3])}" if _is_secret_name(match[1]) else match[0],
        text,
    )


def redact_override(override: str) -> str:
    """A word of the command line, ``key=value``, that tells no secret.

    Example:
        >>> redact_override("data.password=hunter2"), redact_override("seed=1")
        ('data.password=secret-de2779bc', 'seed=1')
    """
    key, equals, value = override.partition("=")
    if equals and _is_secret_name(key.rpartition(".")[2]):
        return f"{key}={_make_placeholder(value)}"
    return redact_text(override)


def contains_placeholder(value: Any) -> bool:
    """Whether something in a value stands for a secret.

    Example:
        >>> contains_placeholder("https://secret-81f1e5a3@data.example.org"), contains_placeholder(["secret"])
        (True, False)
    """
    if isinstance(value, list | tuple):
        return any(map(contains_placeholder, value))
    return isinstance(value, str) and _PLACEHOLDER.search(value) is not None


def is_placeholder(value: Any) -> bool:
    """Whether all of a value stands for a secret."""
    return isinstance(value, str) and _PLACEHOLDER.fullmatch(value) is not None


def _is_secret_name(key: str) -> bool:
    return _SECRET_NAME.search(_WORD_BOUNDARY.sub("_", str(key))) is not None


def _is_token_index(key: str, value: Any) -> bool:
    """As ``pad_token=0`` of a vocabulary."""
    return isinstance(value, int) and key.lower().endswith("token")


def _redact_value(value: Any) -> Any:
    """With nothing left of it, however deep; what is only on, off or absent is none."""
    if isinstance(value, Mapping):
        return {key: _redact_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_value(item) for item in value]
    return value if value is None or isinstance(value, bool) else _make_placeholder(str(value))


def _redact_nested(value: Any) -> Any:
    if isinstance(value, Mapping):
        return redact_settings(value)
    if isinstance(value, list | tuple):
        return [_redact_nested(item) for item in value]
    return redact_text(value) if isinstance(value, str) else value


def _make_placeholder(secret: str) -> str:
    # slow and short, so that trying passwords out takes long, and what fits may be another one
    digest = hashlib.scrypt(secret.encode(), salt=b"stormproof", n=2**14, r=8, p=1, dklen=4)
    return f"secret-{digest.hex()}"
