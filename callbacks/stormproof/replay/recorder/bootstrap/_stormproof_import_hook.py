"""Calls functions after the import of modules, and starts the recorder after the import of torch.

Imports nothing that a Python process has not imported anyway: ``importlib.util`` and ``typing`` take milliseconds.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_SOURCE_ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "..", ".."))
"""Folder that contains the package ``stormproof`` of this file."""


class PostImportFinder:
    """Finder that runs a function right after the code of a module, before its importer binds names."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Callable[[ModuleType], None]] = {}

    def call_after_import(self, name: str, callback: Callable[[ModuleType], None]) -> None:
        """Calls ``callback`` with the module ``name`` after its import, or now if it is imported."""
        if name in sys.modules:
            callback(sys.modules[name])
        else:
            self.callbacks[name] = callback

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the spec of the other finders, with a loader that calls the callback of the module."""
        if fullname not in self.callbacks:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            callback = self.callbacks.pop(fullname, None)  # not in find_spec, which programs call without an import
            execute(module)
            if callback is not None:
                callback(module)

        # the instance keeps its type, so that inspect and importlib.resources work as without the recorder
        loader.exec_module = execute_and_call
        return spec


class PluginFinder:
    """Finder of the package ``stormproof`` that contains this file, or of one of its modules."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the spec of the package, and None for other modules."""
        if fullname != self.name:
            return None
        folder = os.path.join(_SOURCE_ROOT, *fullname.split(".")[:-1])
        return PathFinder.find_spec(fullname, [folder])


def install(started_ns: int) -> None:
    """Starts the recorder after the import of torch.

    The environment of the command may lack Stormproof, or have another version of it. The modules that
    the recorder imports are always those of this package, and ``stormproof`` is if there is no other.

    Args:
        started_ns: Unix time at the start of the process, in nanoseconds.
    """
    finder = PostImportFinder()

    def start_recorder(_: ModuleType) -> None:
        try:
            from stormproof.replay.recorder.install import install  # noqa: PLC0415 (imports torch)

            install(started_ns, finder.call_after_import)
        except Exception as error:  # noqa: BLE001 (the recorder must never break the command)
            _write_error(started_ns, error)

    finder.call_after_import("torch", start_recorder)
    sys.meta_path.insert(0, finder)  # pyright: ignore[reportArgumentType]
    for name in ("stormproof.replay", "stormproof.user_objects"):
        sys.meta_path.insert(1, PluginFinder(name))  # pyright: ignore[reportArgumentType]
    sys.meta_path.append(PluginFinder("stormproof"))  # pyright: ignore[reportArgumentType]


def _write_error(started_ns: int, error: Exception) -> None:
    """Writes a ledger with one error: the recorder could not be imported or could not install its hooks."""
    import json  # noqa: PLC0415 (only after an error)

    start = {
        "event": "start", "version": 1, "pid": os.getpid(), "rank": int(os.environ.get("RANK", "0")),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")), "argv": sys.argv, "time": started_ns / 1e9,
        "hash": "", "root": "", "every": 1, "packages": {},
    }  # fmt: skip
    message = {"event": "recorder_error", "where": "install", "message": f"{type(error).__name__}: {error}"}
    try:
        path = os.path.join(os.environ["STORMPROOF_LEDGER"], f"{started_ns}-{os.getpid()}.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{json.dumps(start)}\n{json.dumps(message)}\n")
    except OSError:
        pass
