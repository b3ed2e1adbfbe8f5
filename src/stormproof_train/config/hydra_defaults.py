"""Selects the current defaults of Hydra."""

from __future__ import annotations

import hydra

VERSION_BASE: dict[str, str] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
"""Arguments that select the defaults: Hydra 1.3 requires ``version_base``, and Hydra 1.4 deprecates it."""
