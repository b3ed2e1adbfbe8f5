"""How to install an optional part of this application."""

from __future__ import annotations

from pathlib import Path


def install(extra: str) -> str:
    """Returns the command that installs an extra: from the checkout that runs, or else from the package index.

    Args:
        extra: Name in ``[project.optional-dependencies]`` of ``pyproject.toml``.

    Example:
        >>> install("search")  # in a checkout
        "pip install -e '.[search]'"
    """
    checkout = Path(__file__).resolve().parents[2]
    where = "-e '." if (checkout / "pyproject.toml").is_file() and (checkout / "train.py").is_file() else "'stormproof"
    return f"pip install {where}[{extra}]'"
