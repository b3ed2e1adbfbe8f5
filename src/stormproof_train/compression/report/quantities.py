"""Formats sizes, times and ratios."""

from __future__ import annotations

from stormproof_train.report.kit.axis import format_tick

_PREFIXES = (("G", 1e9), ("M", 1e6), ("k", 1e3))


def format_count(value: float | None, unit: str = "") -> str:
    """Formats a count with three significant digits and a decimal prefix. Empty for None.

    Example:
        >>> format_count(204_880, "B"), format_count(1_234_000), format_count(812, "B"), format_count(None)
        ('205 kB', '1.23 M', '812 B', '')
    """
    if value is None:
        return ""
    prefix, size = next((entry for entry in _PREFIXES if float(f"{abs(value):.3g}") >= entry[1]), ("", 1))
    return f"{format_tick(value / size)} {prefix}{unit}".rstrip()


def select_prefix(largest: float) -> tuple[str, float]:
    """Returns the decimal prefix for an axis up to a value, and its factor.

    Example:
        >>> select_prefix(820_000), select_prefix(0)
        (('k', 1000.0), ('', 1.0))
    """
    return next((entry for entry in _PREFIXES if largest >= entry[1]), ("", 1.0))


def format_milliseconds(seconds: float | None) -> str:
    """Formats seconds as milliseconds with three significant digits. Empty for None.

    Example:
        >>> format_milliseconds(0.000421), format_milliseconds(1.5), format_milliseconds(None)
        ('0.421', '1,500', '')
    """
    return "" if seconds is None else format_tick(seconds * 1000)


def format_ratio(value: float | None) -> str:
    """Formats a ratio with three significant digits. Empty for None.

    Example:
        >>> format_ratio(2.3149), format_ratio(0.98), format_ratio(None)
        ('2.31', '0.98', '')
    """
    return "" if value is None else format_tick(value)


def divide_or_none(value: float | None, divisor: float | None) -> float | None:
    """Divides two numbers. Returns None if a number is missing or the divisor is 0.

    Example:
        >>> divide_or_none(10, 4), divide_or_none(1, 0), divide_or_none(None, 1)
        (2.5, None, None)
    """
    return None if value is None or not divisor else value / divisor
