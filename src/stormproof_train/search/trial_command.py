"""Builds the commands of trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stormproof_train.config.plan import Plan
from stormproof_train.search.arguments import Arguments
from stormproof_train.search.space import format_overrides

CALLBACK = "stormproof_train.search.reporting.TrialReporter"


class TrialCommand:
    """Builds the arguments of runs.

    Attributes:
        fixed_overrides: Overrides of all trials, as the user wrote them.
    """

    def __init__(self, arguments: Arguments, default: Plan, search_name: str) -> None:
        self._arguments = arguments
        self.fixed_overrides = arguments.fixed_overrides
        fixed_keys = {override.lstrip("+").partition("=")[0] for override in arguments.fixed_overrides}
        defaults = {
            "report": "false",
            "max_restarts_without_progress": "null",  # the worker counts restarts, a killed worker is not a failure
            "logger.group": _quote(search_name),
        }
        if "group" not in default.logger.arguments():
            del defaults["logger.group"]
        self._default_overrides = [f"{key}={value}" for key, value in defaults.items() if key not in fixed_keys]

    def build(self, params: Mapping[str, Any], folder: Path) -> list[str]:
        """Returns the arguments of a run with the given parameters and folder."""
        run_overrides = [f"name={folder.name}", f"runs_dir={_quote(str(folder.parent.absolute()))}", "test=false"]
        return [
            *self._arguments.flags,
            *self._arguments.fixed_overrides,
            *format_overrides(params),
            *self._default_overrides,
            *run_overrides,
        ]

    def reporting_overrides(self, address: str) -> list[str]:
        """Returns the overrides that make a run report to the search."""
        settings = self._arguments.settings
        metrics = ",".join(settings.validation_metrics)
        latency = [f"callbacks.search.latency={str(settings.uses_metric('latency')).lower()}"]
        return [
            f"callbacks.search._target_={CALLBACK}", f"callbacks.search.address={_quote(address)}",
            f"callbacks.search.metrics=[{metrics}]", *latency,
        ]  # fmt: skip


def _quote(value: str) -> str:
    escaped_value = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped_value}'"
