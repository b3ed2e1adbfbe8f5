"""Replaces passwords, keys and tokens in texts before they are written or sent."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:passwords?|passwd|pwd|passphrases?|secrets?|token|credentials?|authorization|auth|bearer|cookies?"
    r"|(?:api|access|account|auth|private|secret|signing)_?keys?|signature|sig)$",
    re.IGNORECASE,
)
_URL_USER = re.compile(r"(?<=://)[^/?#\s]+(?=@)")
_SECRET_IN_TEXT = re.compile(r"(?<![\w.-])([\w-]+)(=|:\s*)([^&\s#,;{}\[\]/'\"]+)")
_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|-")
_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:(?:api)?key|token|secret|passw(?:or)?d|credential)s?(?:_|$)", re.IGNORECASE)
_MIN_CHARACTERS = 6  # of a secret in the environment: a shorter value may occur in any text
_TOKEN = re.compile(
    r"(?<=bearer )[\w.~+/=-]{6,}|\b(?:hf_|gh[opsu]_|github_pat_|sk-|xox[abp]-|AKIA|eyJ)[\w.-]{16,}", re.IGNORECASE
)
_SECRET_OPTION = re.compile(r"(--[\w-]+)\s+(\S+)")
_QUOTED_SECRET = re.compile(r"([\w-]+)['\"]?\s*[=:]\s*(?:['\"])(.+?)['\"]")


def redact_text(text: str) -> str:
    """Replaces users and keys in the URLs of a text by placeholders.

    Example:
        >>> redact_text("no answer from postgresql://me:hunter2@db/runs")
        'no answer from postgresql://secret-bb5163fa@db/runs'
    """
    text = _URL_USER.sub(lambda match: make_placeholder(match[0]), text)
    return _SECRET_IN_TEXT.sub(
        lambda match: f"{match[1]}{match[2]}{make_placeholder(match[3])}" if is_secret_name(match[1]) else match[0],
        text,
    )


def redact_output(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Replaces secrets in the output of any program by placeholders.

    Includes :func:`redact_text`, values of environment variables such as ``HF_TOKEN``, quoted values after a name of a
    secret, and tokens after ``Bearer`` or with a known prefix.

    Example:
        >>> redact_output("login failed with {'password': 'hunter2'}")
        "login failed with {'password': 'secret-de2779bc'}"
    """
    for name, value in environment.items():
        if len(value) >= _MIN_CHARACTERS and value in text and _SECRET_VARIABLE.search(name):
            text = text.replace(value, make_placeholder(value))
    text = _TOKEN.sub(lambda match: make_placeholder(match[0]), text)
    for pattern in (_SECRET_OPTION, _QUOTED_SECRET):
        text = pattern.sub(_redact_match, text)
    return redact_text(text)


def _redact_match(match: re.Match[str]) -> str:
    name, value = match.groups()
    return match[0].replace(value, make_placeholder(value)) if is_secret_name(name) else match[0]


def is_secret_name(key: str) -> bool:
    """Returns True for the name of a setting or option that contains a secret."""
    return _SECRET_NAME.search(_WORD_BOUNDARY.sub("_", str(key))) is not None


def make_placeholder(secret: str) -> str:
    """Returns a text that replaces a secret. Equal secrets have equal placeholders."""
    # Slow and short, so that guessing passwords takes long and a match is not unique.
    digest = hashlib.scrypt(secret.encode(), salt=b"stormproof", n=2**14, r=8, p=1, dklen=4)
    return f"secret-{digest.hex()}"
