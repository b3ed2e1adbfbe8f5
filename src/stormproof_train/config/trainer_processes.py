"""Sets the Trainer's number of processes to the launcher's, or checks it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from stormproof_train.config.signature_binding import Target
from stormproof_train.errors import UserError
from stormproof_train.launcher import detect_launcher


def match_launcher(trainer: Target, environ: Mapping[str, str] = os.environ) -> Target:
    """Returns the Trainer with the launcher's number of processes, if its ``devices`` are ``auto``.

    Args:
        trainer: Trainer, not built yet.
        environ: Environment variables.

    Raises:
        UserError: If ``devices`` or ``num_nodes`` differ from the launcher's.
    """
    launcher_counts = detect_launcher(environ)
    devices, nodes = trainer.kwargs.get("devices", 1), trainer.kwargs.get("num_nodes", 1)
    if not launcher_counts:
        return trainer
    if devices == "auto":
        return replace(trainer, kwargs={**trainer.kwargs, **launcher_counts})
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 0
    if not count:  # all devices, or a list as text, which Lightning parses
        return trainer
    if (count, nodes) != (launcher_counts["devices"], launcher_counts["num_nodes"]):
        raise UserError(
            f"the launcher started {launcher_counts['devices']} on each of {launcher_counts['num_nodes']} nodes, but "
            f"trainer.devices={devices} and trainer.num_nodes={nodes}. Use trainer=ddp, which takes the numbers of the "
            "launcher."
        )
    return trainer
