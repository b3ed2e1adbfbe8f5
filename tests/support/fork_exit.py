"""Ends a forked process as the interpreter ends a script."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def run_and_exit(function: Callable[[], object]) -> NoReturn:
    """Calls a function and the exit functions, and exits with the code of a script that does the same.

    The process is a fork. It must not return to the code of its parent.
    """
    code: Any = 1
    try:
        function()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        if not isinstance(code, int):
            print(code, file=sys.stderr)  # noqa: T201 (as the interpreter does)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
