"""The table of fixes in the page about ``stormproof certify``."""

from __future__ import annotations

import re
from pathlib import Path

from stormproof.replay.reports.component_names import describe_component
from stormproof.replay.reports.fixes import FIXES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "certify.md"
FRAMEWORKS = {"torch": "PyTorch", "lightning": "Lightning", "transformers": "HF Trainer", "accelerate": "Accelerate"}
START, END = "<!-- fixes -->", "<!-- end of fixes -->"
NAMES = {
    "optimizer": "optimizer",
    "scheduler": "learning-rate scheduler",
    "variables": "variable of the program",
    "rng/generators": "generator objects (torch, NumPy, Python)",
}


def certify_page() -> str:
    """Returns the page with the current table."""
    head = ["component", *FRAMEWORKS.values()]
    rows = [[_name(kind), *(fixes.get(name, "as in PyTorch") for name in FRAMEWORKS)] for kind, fixes in FIXES.items()]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    table = "\n".join(lines)
    text = PAGE.read_text(encoding="utf-8")
    page, count = re.subn(f"{START}.*?{END}", lambda _: f"{START}\n\n{table}\n\n{END}", text, flags=re.DOTALL)
    assert count == 1, f"{PAGE} must contain {START} and {END}"
    return page


def _name(kind: str) -> str:
    return NAMES.get(kind) or describe_component(kind)
