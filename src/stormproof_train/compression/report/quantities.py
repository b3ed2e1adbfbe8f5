"""Sizes, times and ratios as a person reads them."""

from __future__ import annotations

from stormproof_train.report.kit.axis import tick_text

_PREFIXES = (("G", 1e9), ("M", 1e6), ("k", 1e3))


def prefixed(value: float | None, unit: str = "") -> str:
    """A count to three significant digits, with a decimal prefix; empty for None.

    Example:
        >>> prefixed(204_880, "B"), prefixed(1_234_000), prefixed(812, "B"), prefixed(None)
        ('205 kB', '1.23 M', '812 B', '')
    """
    if value is None:
        return ""
    prefix, size = next((each for each in _PREFIXES if float(f"{abs(value):.3g}") >= each[1]), ("", 1))
    return f"{tick_text(value / size)} {prefix}{unit}".rstrip()


def scale_of(largest: float) -> tuple[str, float]:
    """The prefix, and what it stands for, in which an axis up to a value is written.

    Example:
        >>> scale_of(820_000), scale_of(0)
        (('k', 1000.0), ('', 1.0))
    """
    return next((each for each in _PREFIXES if largest >= each[1]), ("", 1.0))


def milliseconds(seconds: float | None) -> str:
    """Seconds in milliseconds, to three significant digits; empty for None.

    Example:
        >>> milliseconds(0.000421), milliseconds(1.5), milliseconds(None)
        ('0.421', '1,500', '')
    """
    return "" if seconds is None else tick_text(seconds * 1000)


def ratio(value: float | None) -> str:
    """How many times, to three significant digits; empty for None.

    Example:
        >>> ratio(2.3149), ratio(0.98), ratio(None)
        ('2.31', '0.98', '')
    """
    return "" if value is None else tick_text(value)


def quotient(value: float | None, divisor: float | None) -> float | None:
    """How many times the second the first is, where that can be said.

    Example:
        >>> quotient(10, 4), quotient(1, 0), quotient(None, 1)
        (2.5, None, None)
    """
    return None if value is None or not divisor else value / divisor
