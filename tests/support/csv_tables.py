"""Small CSV tables."""

from pathlib import Path
from typing import Any

from stormproof_train.data.csv import CSV


def make_csv(folder: Path, text: str, **arguments: Any) -> CSV:
    """Returns the data module of a table with the target ``y``. Arguments override its defaults."""
    file = folder / "table.csv"
    file.write_text(text)
    return CSV(str(file), **{"target": "y", **arguments})


def people_csv(rows: int = 60) -> str:
    """Returns a table with two alternating classes, and numbers and text with missing cells."""
    lines = ["age,city,height,y"]
    for row in range(rows):
        age = "" if row % 7 == 0 else str(20 + row)
        city = "" if row % 11 == 0 else ["Rome", "Oslo", "Bern"][row % 3]
        lines.append(f"{age},{city},{150 + row / 2},{'yes' if row % 2 else 'no'}")
    return "\n".join(lines) + "\n"
