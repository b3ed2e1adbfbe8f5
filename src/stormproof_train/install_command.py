"""Returns commands that install optional dependencies."""

from __future__ import annotations

from pathlib import Path


def install_command(extra: str) -> str:
    """Returns the command that installs an extra, from the active checkout or from the package index.

    Args:
        extra: Name in ``[project.optional-dependencies]`` of ``pyproject.toml``.

    Example:
        >>> install_command("search")  # in a checkout
        "pip install -e '.[search]'"
    """
    is_checkout = not (Path(__file__).parent / "conf").is_dir()  # a wheel contains the configs in the package
    return f"pip install -e '.[{extra}]'" if is_checkout else f"pip install 'stormproof[{extra}]'"
