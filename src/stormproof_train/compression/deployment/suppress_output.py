"""Suppresses output of libraries during conversions."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Suppresses printed text and log messages of torch, onnx and the root logger.

    A failed conversion raises an exception. All other output is advice that is already followed.
    """
    root, library_loggers = (
        logging.getLogger(),
        [logging.getLogger(name) for name in ("torch", "torch.fx", "onnxscript")],
    )
    levels = [logger.level for logger in library_loggers]
    null_handler = logging.NullHandler()  # otherwise the first message would configure logging for the process
    root.addHandler(null_handler)
    root.addFilter(_reject_record)
    for logger in library_loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(library_loggers, levels, strict=True):
            logger.setLevel(level)
        root.removeFilter(_reject_record)
        root.removeHandler(null_handler)


def _reject_record(_: logging.LogRecord) -> bool:
    return False
