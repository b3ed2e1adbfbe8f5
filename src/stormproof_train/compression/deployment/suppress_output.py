"""What libraries say on the way of a conversion, and nobody needs to hear."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Drops what is printed, and what is logged by no logger of its own, or by torch or onnx.

    A conversion that fails says so by an exception; all else is advice on how to prepare a model, which has been taken.
    """
    root, library_loggers = (
        logging.getLogger(),
        [logging.getLogger(name) for name in ("torch", "torch.fx", "onnxscript")],
    )
    levels = [logger.level for logger in library_loggers]
    null_handler = logging.NullHandler()  # else the first message would set up logging, for the whole process
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
