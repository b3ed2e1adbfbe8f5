"""A badge for a README as SVG."""

from __future__ import annotations

from stormproof.replay.certification import Certification

LABEL = "resume"
CHARACTER_WIDTH = 6.6
"""Mean width of a character of the font at 11 pixels, in pixels."""
GREEN, RED = "#11703a", "#b3261e"


def badge(certification: Certification) -> str:
    """Returns a badge with the number of exact faults."""
    exact, total = certification.exact_count, len(certification.results)
    value = (
        f"exact ({total})"
        if exact == total
        else f"passed ({total})"
        if certification.is_exact
        else f"{exact} of {total} exact"
    )
    left, right = (int(CHARACTER_WIDTH * len(text)) + 12 for text in (LABEL, value))
    color = GREEN if certification.is_exact else RED
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{LABEL}: {value}"><title>{LABEL}: {value}</title>'
        f'<rect width="{left + right}" height="20" rx="3" fill="#44546a"/>'
        f'<path fill="{color}" d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{right - 3}z"/>'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
        f'<text x="{left / 2}" y="14">{LABEL}</text><text x="{left + right / 2}" y="14">{value}</text></g></svg>\n'
    )
