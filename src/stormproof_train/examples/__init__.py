"""Data sets of the example experiments."""

from __future__ import annotations

from pathlib import Path


def shipped(name: str) -> str:
    """Returns the path of a file of this package.

    Args:
        name: Name of the file, such as ``deliveries.csv``.

    Example:
        >>> Path(shipped("deliveries.csv")).read_text().splitlines()[0]
        'distance_km,parcels,vehicle,district,raining,minutes'
    """
    return str(Path(__file__).parent / name)
