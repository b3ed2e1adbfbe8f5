"""Sets the Trainer's number of processes to the launcher's, or checks it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from stormproof_train.config.signature_binding import Target
from stormproof_train.errors import UserError
from stormproof_train.launcher import launched


def as_launched(trainer: Target, environ: Mapping[str, str] = os.environ) -> Target:
    """Returns the Trainer with the launcher's number of processes, if its ``devices`` are ``auto``.

    Args:
        trainer: Trainer, not built yet.
        environ: Environment variables.

    Raises:
        UserError: If ``devices`` or ``num_nodes`` differ from the launcher's.
    """
    started = launched(environ)
    devices, nodes = trainer.given.get("devices", 1), trainer.given.get("num_nodes", 1)
    if not started:
        return trainer
    if devices == "auto":
        return replace(trainer, given={**trainer.given, **started})
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 0
    if not count:  # all, or a list as text: Lightning parses it
        return trainer
    if (count, nodes) != (started["devices"], started["num_nodes"]):
        raise UserError(
            f"the launcher started {started['devices']} on each of {started['num_nodes']} nodes, and the Trainer is "
            f"for trainer.devices={devices} and trainer.num_nodes={nodes}: trainer=ddp takes the launcher's numbers"
        )
    return trainer
