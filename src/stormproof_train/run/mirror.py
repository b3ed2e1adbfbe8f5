"""Finds the object store to which a run copies its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable

from stormproof.checkpoint.storage import ObjectStorage
from stormproof_train.config.signature_binding import Target
from stormproof_train.errors import UserError


def locate_mirror(mirror: str | None, run_name: str, callbacks: Iterable[Target]) -> str | None:
    """Returns the URL of the copies of a run, ``<mirror>/<run name>``. None without a mirror.

    Args:
        mirror: Normalized URL for the copies of all runs.
        run_name: Name of the run.
        callbacks: Callbacks of the run, not built yet.

    Raises:
        UserError: If no callback uses the mirror, or the object store cannot be opened.
        MissingExtraError: If the extra ``remote`` is not installed.
    """
    if mirror is None:
        return None
    if not any(callback.uses_injected("mirror") for callback in callbacks):
        raise UserError(
            f"checkpoints.mirror={mirror} has no effect, because no callback uses it. Set callbacks=default, or "
            "checkpoints.mirror=null."
        )
    try:
        return ObjectStorage(f"{mirror}/{run_name}").location
    except ValueError as error:  # the name of the run contains a character that a URL cannot contain
        raise UserError(f"checkpoints.mirror: {error}") from error
    except OSError as error:
        raise UserError(
            f"checkpoints.mirror={mirror} cannot be opened: {error.strerror}. Set checkpoints.mirror=null to keep no "
            "copies."
        ) from error
