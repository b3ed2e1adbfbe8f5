"""Checks for releases of torch and Lightning with known vulnerabilities."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from stormproof.cli.doctor.risk import Risk

LIGHTNING_PACKAGES = ("pytorch-lightning", "lightning")
COMPROMISED_RELEASES = {(2, 6, 2), (2, 6, 3)}


def installation_risks(installed: Mapping[str, str] | None = None) -> list[Risk]:
    """Returns the risks of the installed releases.

    Args:
        installed: Versions by package. Defaults to the packages of this environment.

    Example:
        >>> [risk.summary for risk in installation_risks({"torch": "2.9.1", "lightning": "2.6.6"})]
        ['torch 2.9.1 corrupts memory when it loads a crafted checkpoint']
    """
    versions = _installed_versions() if installed is None else installed
    return [risk for package in versions for risk in _package_risks(package, versions[package])]


def _installed_versions() -> dict[str, str]:
    versions = {}
    for package in ("torch", *LIGHTNING_PACKAGES):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # one of the two Lightning packages is enough
            continue
    return versions


def _package_risks(package: str, version_number: str) -> Iterator[Risk]:
    release = _parse_release(version_number)
    if package == "torch" and release < (2, 6, 0):
        yield Risk(
            f"torch {version_number} runs code from a crafted checkpoint",
            sys.prefix,
            "torch.load runs it even with weights_only=True (CVE-2025-32434)",
            "pip install 'torch>=2.10'",
        )
    elif package == "torch" and release < (2, 10, 0):
        yield Risk(
            f"torch {version_number} corrupts memory when it loads a crafted checkpoint",
            sys.prefix,
            "torch.load does so even with weights_only=True (GHSA-63cw-57p8-fm3p)",
            "pip install 'torch>=2.10'",
        )
    elif package in LIGHTNING_PACKAGES and release in COMPROMISED_RELEASES:
        yield Risk(
            f"{package} {version_number} was published by an attacker",
            sys.prefix,
            "it may have run their code with all your permissions (GHSA-w37p-236h-pfx3)",
            f"pip uninstall {package}; replace all keys and passwords that it could read; install 2.6.6 or newer",
        )
    elif package in LIGHTNING_PACKAGES and release < (2, 6, 6):
        yield Risk(
            f"{package} {version_number} runs code from a crafted checkpoint",
            sys.prefix,
            "load_from_checkpoint runs it even with weights_only=True (CVE-2026-58659)",
            f"pip install '{package}>=2.6.6'",
        )


def _parse_release(version_number: str) -> tuple[int, ...]:
    """Returns the first three numbers of a version, without local and development parts."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version_number)
    return tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)
