"""The folder of Hydra configs."""

from __future__ import annotations

from pathlib import Path

import stormproof_train


def conf_dir() -> Path:
    """Returns the config folder: ``conf/`` in the installed package, or in the checkout."""
    package = Path(stormproof_train.__file__ or "").resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"
