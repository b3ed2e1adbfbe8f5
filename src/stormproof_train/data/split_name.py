"""Names of the splits of a data module. Imports no torch."""

from __future__ import annotations

from typing import Literal

SplitName = Literal["train", "validation", "test"]
