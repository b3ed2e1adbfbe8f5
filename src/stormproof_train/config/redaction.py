"""Passwords, keys and tokens among the arguments, which no file and no server is told."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

_NAMES_A_SECRET = re.compile(
    r"(?:^|_)(?:passwords?|passwd|pwd|passphrases?|secrets?|token|credentials?|authorization|auth|bearer|cookies?"
    r"|(?:api|access|account|auth|private|secret|signing)_?keys?|signature|sig)$",
    re.IGNORECASE,
)
_USER_OF_A_URL = re.compile(r"(?<=://)[^/?#\s]+(?=@)")
_STANDS_IN = re.compile(r"\bsecret-[0-9a-f]{8}\b")
_SECRET_IN_TEXT = re.compile(r"(?<![\w.-])([\w-]+)(=|:\s*)([^&\s#,;{}\[\]/'\"]+)")
_NEXT_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|-")


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with what stands for a secret in the place of each: of the same one the same, of another one another.

    Secret is what a key like ``password``, ``api_key``, ``X-Api-Key``, ``hfToken`` or ``credentials`` holds, but for
    true, false, null and a token's number; and in any text the user of a URL, with the password, and what stands behind
    a key like these and ``=`` or a colon.

    Args:
        settings: nested mappings and lists of plain values.

    Example:
        >>> without_secrets({"data": {"path": "https://data.example.org/a.csv", "api_key": "hunter2"}})
        {'data': {'path': 'https://data.example.org/a.csv', 'api_key': 'secret-de2779bc'}}
    """
    return {
        key: _hidden(value) if _names_a_secret(key) and not _is_number_of_a_token(key, value) else _searched(value)
        for key, value in settings.items()
    }


def without_secrets_in_text(text: str) -> str:
    """A text whose URLs tell neither users nor keys.

    Example:
        >>> without_secrets_in_text("no answer from postgresql://me:hunter2@db/runs")
        'no answer from postgresql://secret-bb5163fa@db/runs'
    """
    text = _USER_OF_A_URL.sub(lambda found: _stand_in(found[0]), text)
    return _SECRET_IN_TEXT.sub(
        lambda found: f"{found[1]}{found[2]}{_stand_in(found[3])}" if _names_a_secret(found[1]) else found[0], text
    )


def without_secret(override: str) -> str:
    """A word of the command line, ``key=value``, that tells no secret.

    Example:
        >>> without_secret("data.password=hunter2"), without_secret("seed=1")
        ('data.password=secret-de2779bc', 'seed=1')
    """
    key, equals, value = override.partition("=")
    if equals and _names_a_secret(key.rpartition(".")[2]):
        return f"{key}={_stand_in(value)}"
    return without_secrets_in_text(override)


def holds_stand_in(value: Any) -> bool:
    """Whether something in a value stands for a secret.

    Example:
        >>> holds_stand_in("https://secret-81f1e5a3@data.example.org"), holds_stand_in(["secret"])
        (True, False)
    """
    if isinstance(value, list | tuple):
        return any(map(holds_stand_in, value))
    return isinstance(value, str) and _STANDS_IN.search(value) is not None


def stands_for_a_secret(value: Any) -> bool:
    """Whether all of a value stands for a secret."""
    return isinstance(value, str) and _STANDS_IN.fullmatch(value) is not None


def _names_a_secret(key: str) -> bool:
    return _NAMES_A_SECRET.search(_NEXT_WORD.sub("_", str(key))) is not None


def _is_number_of_a_token(key: str, value: Any) -> bool:
    """As ``pad_token=0`` of a vocabulary."""
    return isinstance(value, int) and key.lower().endswith("token")


def _hidden(value: Any) -> Any:
    """With nothing left of it, however deep; what is only on, off or absent is none."""
    if isinstance(value, Mapping):
        return {key: _hidden(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(each) for each in value]
    return value if value is None or isinstance(value, bool) else _stand_in(str(value))


def _searched(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, list | tuple):
        return [_searched(each) for each in value]
    return without_secrets_in_text(value) if isinstance(value, str) else value


def _stand_in(secret: str) -> str:
    # slow and short, so that trying passwords out takes long, and what fits may be another one
    digest = hashlib.scrypt(secret.encode(), salt=b"stormproof", n=2**14, r=8, p=1, dklen=4)
    return f"secret-{digest.hex()}"
