"""Warnings of a function that is called on behalf of somebody else."""

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
"""Frames of the caller that are imitated for a function in Python: ``nn.Softmax`` warns five frames up, from the second
below these. What is in C++ warns of its caller."""


def call_at_callers_line(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Calls a torch function for the caller of a ``__torch_function__``, which calls this.

    Warnings name the file and the line that they would name without a ``__torch_function__``, and are filtered by the
    same module. For that the function is called in frames with the lines and the globals of the caller's; a traceback
    shows these twice.

    Args:
        function: Function that torch gave to ``__torch_function__``.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    if is_dynamo_compiling():  # which cannot trace frames, and warns of lines in what it compiles
        return function(*args, **kwargs)
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 (its documented name)
    frames = 1
    if frame.f_code is _DISPATCHER and frame.f_back is not None:  # of a function in Python, which is called once more
        frame, frames = frame.f_back.f_back, _FRAMES
    while frame is not None and frames:
        code = _code_at(frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno or 1)
        function, args, kwargs = FunctionType(code, frame.f_globals), (function, args, kwargs), {}
        frame, frames = frame.f_back, frames - 1
    return function(*args, **kwargs)


@lru_cache(maxsize=4096)
def _code_at(filename: str, name: str, line: int) -> CodeType:
    return _CALL.replace(co_filename=filename, co_name=name, co_firstlineno=line)
