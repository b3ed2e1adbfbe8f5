"""Data of the example experiments."""

from __future__ import annotations

from pathlib import Path


def shipped(name: str) -> str:
    """The path of a file that ships, wherever the package is installed.

    Args:
        name: the file, ``deliveries.csv``.

    Example:
        >>> Path(shipped("deliveries.csv")).read_text().splitlines()[0]
        'distance_km,parcels,vehicle,district,raining,minutes'
    """
    return str(Path(__file__).parent / name)
