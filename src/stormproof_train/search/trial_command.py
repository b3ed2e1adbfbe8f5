"""The command of a trial: that of the search, with its parameters, and what makes it a trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stormproof_train.config.plan import Plan
from stormproof_train.search.arguments import Asked
from stormproof_train.search.space import words_of

CALLBACK = "stormproof_train.search.reporting.ReportToSearch"


class TrialWords:
    """Makes the words of runs.

    Args:
        asked: what is searched.
        default: the plan of a run without anything searched.
        search: the name of the search.

    Attributes:
        fixed: those that all have, as the user wrote them.
    """

    def __init__(self, asked: Asked, default: Plan, search: str) -> None:
        self._asked = asked
        self.fixed = asked.fixed
        given = {word.lstrip("+").partition("=")[0] for word in asked.fixed}
        wanted = {
            "report": "false",
            "max_restarts_without_progress": "null",  # a kill of its worker is none of its own; the worker counts those
            "logger.group": _quoted(search),
        }
        if "group" not in default.logger.arguments():
            del wanted["logger.group"]
        self._usual = [f"{key}={value}" for key, value in wanted.items() if key not in given]

    def of(self, params: Mapping[str, Any], folder: Path) -> list[str]:
        """Those of a run with some parameters, in its folder."""
        own = [f"name={folder.name}", f"runs_dir={_quoted(str(folder.parent.absolute()))}", "test=false"]
        return [*self._asked.flags, *self._asked.fixed, *words_of(params), *self._usual, *own]

    def asking(self, address: str) -> list[str]:
        """Those by which a run asks whether it shall go on."""
        settings = self._asked.settings
        metrics = ",".join(settings.told_metrics)
        latency = [f"callbacks.search.latency={str(settings.looks_at('latency')).lower()}"]
        return [
            f"callbacks.search._target_={CALLBACK}", f"callbacks.search.address={_quoted(address)}",
            f"callbacks.search.metrics=[{metrics}]", *latency,
        ]  # fmt: skip


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
