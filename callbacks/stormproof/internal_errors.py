"""Isolates exceptions in monitors, which must not end the run."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_plain_tensors = torch._C.DisableTorchFunction  # noqa: SLF001 (documented despite the underscore)
MAX_LENGTH = 200
"""Maximum number of characters of a message."""


def isolated(function: Callable[..., Any], on_error: Callable[[Exception], object]) -> Callable[..., None]:
    """Wraps ``function`` to call ``on_error`` with any exception, except those that a signal handler raised.

    In the function, tensor subclasses are plain tensors, see :func:`with_plain_tensors`.
    """

    def isolated_function(*args: Any, **kwargs: Any) -> None:
        try:
            with _plain_tensors():
                function(*args, **kwargs)
        except Exception as error:
            # raising would skip the on_exception hooks of other callbacks
            if is_raised_by_signal_handler(error) and getattr(function, "__name__", "") != "on_exception":
                raise
            on_error(error)

    return isolated_function


def with_plain_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps ``function`` so that ``__torch_function__`` of tensor subclasses and active modes are not called."""

    @functools.wraps(function)
    def plain_function(*args: Any, **kwargs: Any) -> Any:
        with _plain_tensors():
            return function(*args, **kwargs)

    return plain_function


def isolated_until_error(mode: Any, function: Callable[..., None]) -> Callable[..., None]:
    """Wraps ``function`` to set ``mode.error`` to its first exception, and to do nothing after one."""
    return do_nothing if mode.error is not None else isolated(function, functools.partial(setattr, mode, "error"))


def isolate_errors(hook: Callable[..., None]) -> Callable[..., None]:
    """Wraps a hook of a callback such that an exception calls its ``_disable``, see :func:`isolated`."""

    @functools.wraps(hook)
    def isolated_hook(self: Any, *args: Any, **kwargs: Any) -> None:
        isolated(hook, self._disable)(self, *args, **kwargs)

    return isolated_hook


def is_raised_by_signal_handler(error: Exception) -> bool:
    """Returns whether torch raised the error because a loader worker died. It can raise it in any code."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") == "torch.utils.data._utils.signal_handling"


def describe_error(error: Exception) -> str:
    """Returns a clause with the type, the message and the place of an exception, such as ``failed with …``."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"failed with {type(error).__name__}: {str(error)[:MAX_LENGTH]} (in {frame.name}, {Path(frame.filename).name} "
        f"line {frame.lineno})"
    )


def do_nothing(*_: Any, **__: Any) -> None:
    """Replaces a function that must not run."""
