"""Starts the recorder in each Python process of a command. The folder of this file is the first entry of PYTHONPATH.

A process that never imports torch pays only for this file. Other ``sitecustomize`` modules run as without it.
"""

import os
import sys
import time

_FOLDER = os.path.dirname(os.path.abspath(__file__))


def _run_next_sitecustomize() -> None:
    """Imports the ``sitecustomize`` that Python would import without this one."""
    own = sys.modules.pop("sitecustomize", None)
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if os.path.abspath(entry or ".") != _FOLDER]
    try:
        import sitecustomize  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
        if own is not None:
            sys.modules.setdefault("sitecustomize", own)


if os.environ.get("STORMPROOF_LEDGER"):
    try:
        import _stormproof_import_hook  # pyright: ignore[reportMissingImports] (in this folder)

        _stormproof_import_hook.install(time.time_ns())
    except Exception:  # noqa: BLE001, S110 (the recorder must never break the command)
        pass
_run_next_sitecustomize()
