"""Checks for releases of the package ``lightning`` with known vulnerabilities.

Stormproof cannot be installed with such releases of torch and pytorch-lightning, but does not require ``lightning``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from stormproof.cli.doctor.risk import Risk

PACKAGE = "lightning"
COMPROMISED_RELEASES = {(2, 6, 2), (2, 6, 3)}


def installation_risks() -> Iterator[Risk]:
    """Yields the risk of the installed release, if any."""
    try:
        version_number = version(PACKAGE)
    except PackageNotFoundError:
        return
    release = _parse_release(version_number)
    if release in COMPROMISED_RELEASES:
        yield Risk(
            f"{PACKAGE} {version_number} was published by an attacker",
            sys.prefix,
            "it may have run their code with all your permissions (GHSA-w37p-236h-pfx3)",
            f"pip uninstall {PACKAGE}; replace all keys and passwords that it could read; install 2.6.6 or newer",
        )
    elif release < (2, 6, 6):
        yield Risk(
            f"{PACKAGE} {version_number} runs code from a crafted checkpoint",
            sys.prefix,
            "load_from_checkpoint runs it even with weights_only=True (CVE-2026-58659)",
            f"pip install '{PACKAGE}>=2.6.6'",
        )


def _parse_release(version_number: str) -> tuple[int, ...]:
    """Returns the first three numbers of a version, without local and development parts."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version_number)
    return tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)
