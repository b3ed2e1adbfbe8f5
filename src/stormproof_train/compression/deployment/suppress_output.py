"""What libraries say on the way of a conversion, and nobody needs to hear."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what is printed, and what is logged by no logger of its own, or by torch or onnx.

    A conversion that fails says so by an exception; all else is advice on how to prepare a model, which has been taken.
    """
    root, torchs = logging.getLogger(), [logging.getLogger(name) for name in ("torch", "torch.fx", "onnxscript")]
    levels = [each.level for each in torchs]
    nowhere = logging.NullHandler()  # else the first message would set up logging, for the whole process
    root.addHandler(nowhere)
    root.addFilter(_nothing)
    for each in torchs:
        each.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for each, level in zip(torchs, levels, strict=True):
            each.setLevel(level)
        root.removeFilter(_nothing)
        root.removeHandler(nowhere)


def _nothing(_: logging.LogRecord) -> bool:
    return False
