"""Logs findings and other events of the callbacks with child loggers of ``stormproof``."""

from __future__ import annotations

import logging
from typing import Any

from stormproof.distributed.rank import is_rank_zero
from stormproof.standard_output import print_text


class _ConsoleHandler(logging.Handler):
    """Prints messages to standard output until the program attaches a handler to this logger or to the root logger."""

    def emit(self, record: logging.LogRecord) -> None:
        handlers = [*logging.getLogger().handlers, *_LOGGER.handlers]
        if all(handler is self or isinstance(handler, logging.NullHandler) for handler in handlers):
            print_text(f"{self.format(record)}\n")


_LOGGER = logging.getLogger("stormproof")
_LOGGER.addHandler(_ConsoleHandler())
if _LOGGER.level == logging.NOTSET:
    _LOGGER.setLevel(logging.INFO)


def log_event(name: str, message: str, level: int = logging.INFO, **attributes: Any) -> None:
    """Logs a message on rank 0.

    Args:
        name: Name of the logger: ``__name__`` of the calling module.
        message: One line.
        level: Level of :mod:`logging`.
        attributes: Attributes of the log record.
    """
    if is_rank_zero():
        logging.getLogger(name).log(level, message, extra=attributes, stacklevel=2)
