"""Attributes warnings of torch functions to the line of the user."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function

_DISPATCHER = handle_torch_function.__code__
_CALL = (lambda function, args, kwargs: function(*args, **kwargs)).__code__
_FRAMES = 3
"""Caller frames to copy for a function in Python: ``nn.Softmax`` warns five frames up. C++ functions name their direct
caller."""


def call_at_callers_line(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Calls ``function`` so that its warnings name the line that called it.

    Call this directly from ``__torch_function__``. Warnings keep their file, line and module filter. Copies of the
    caller's frames make this work, so a traceback shows those lines twice.

    Args:
        function: Function that torch gave to ``__torch_function__``.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    if is_dynamo_compiling():  # dynamo cannot trace frames
        return function(*args, **kwargs)
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 (documented despite the underscore)
    frames = 1
    if frame.f_code is _DISPATCHER and frame.f_back is not None:  # a function in Python, which calls itself once more
        frame, frames = frame.f_back.f_back, _FRAMES
    while frame is not None and frames:
        code = _code_at(frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno or 1)
        function, args, kwargs = FunctionType(code, frame.f_globals), (function, args, kwargs), {}
        frame, frames = frame.f_back, frames - 1
    return function(*args, **kwargs)


@lru_cache(maxsize=4096)
def _code_at(filename: str, name: str, line: int) -> CodeType:
    return _CALL.replace(co_filename=filename, co_name=name, co_firstlineno=line)
