"""API pages: one ``::: name`` directive per public name, which mkdocstrings replaces by its docstring."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import yaml

from docs_pages.paths import API, CONF

PLUGIN = "stormproof"
APPLICATION = "stormproof_train"


@dataclass(frozen=True)
class Page:
    """An API page.

    Attributes:
        title: Heading of the page. If it is empty, the heading is the name of the only object.
        introduction: Paragraph below the heading, in Markdown.
        names: Full names of the documented objects.
    """

    title: str
    introduction: str
    names: tuple[str, ...]

    def render(self) -> str:
        """Returns the text of the page."""
        if not self.title:
            return f"::: {self.names[0]}\n    options:\n      heading_level: 1\n"
        parts = [f"# {self.title}", self.introduction, *(f"::: {name}" for name in self.names)]
        return "\n\n".join(part for part in parts if part) + "\n"


PLUGIN_PAGES = {
    "checkpoint_recovery": ("CheckpointRecovery",),
    "dead_neuron_detector": ("DeadNeuronDetector", "MaxoutPieces"),
    "divergence_guard": ("DivergenceGuard",),
    "gradient_norm_monitor": ("GradientNormMonitor",),
    "hang_watch": ("HangWatch", "long_wait"),
    "preemption": ("Preemption",),
    "resumable": ("resumable",),
    "step_timer": ("StepTimer",),
    "training_health": ("TrainingHealth",),
    "findings": (
        "Finding",
        "Problem",
        "Severity",
        "health.summary.HealthSummary",
        "Rule",
        "NotEnoughEvidence",
        "default_rules",
        "health.record.Record",
        "health.observations.batches.Batches",
        "health.observations.losses.Losses",
        "health.observations.losses.ValidationPass",
        "health.observations.gradients.Gradients",
        "health.observations.weights.Weights",
        "health.observations.optimizers.Optimizers",
        "health.observations.optimizers.ParameterGroup",
        "health.observations.data.Data",
        "health.observations.predictions.Predictions",
        "health.observations.predictions.TracedStep",
        "health.observations.predictions.PredictionStats",
        "health.observations.predictions.Comparison",
        "health.observations.units.Units",
        "health.observations.timing.Timing",
        "health.observations.ranks.Ranks",
        "health.observations.non_finite.NonFiniteOrigin",
    ),
    "storage": tuple(
        f"checkpoint.storage.{name}"
        for name in ("Storage", "Entry", "StageCallback", "OutcomeUnknownError", "PosixStorage", "ObjectStorage")
    ),
    "errors": ("StormproofError", "DivergedError", "PreemptedExit"),
}
"""Names of ``stormproof.__all__``, or dotted paths in ``stormproof``, on each page of the plugin."""

TITLES = {
    "dead_neuron_detector": "DeadNeuronDetector",
    "errors": "Errors",
    "findings": "Findings and rules",
    "hang_watch": "HangWatch",
    "storage": "Storages",
}
"""Headings of pages with several names."""

TESTING = Page(
    "Testing",
    "Fault injection for tests of your own recovery, and conformance tests for a "
    "[storage of your own](../../how-to/add_a_storage.md). The callbacks do not import `stormproof.testing`.",
    tuple(
        f"{PLUGIN}.testing.{name}"
        for name in (
            "FaultInjector",
            "faults_from_environment",
            "truncate_file",
            "flip_bit",
            "POSITIONS",
            "StorageSuite",
        )
    ),
)

PACKAGES = {
    "activations": (
        "Activations",
        "Activations that torch lacks, and functions for any activation. See [options](../config.md#activation).",
    ),
    "losses": (
        "Losses",
        "[Losses](../losses.md) compares the formulas, and [configuration](../config.md#loss) lists the options.",
    ),
    "initialization": (
        "Initialization",
        "Functions that initialize weights in place. [Configuration](../config.md#initialization) lists the options.",
    ),
    "models": ("Models", "[Configuration](../config.md#model) lists the options."),
}
"""Title and introduction for each package of the application with ``__all__``."""

GROUPS = {
    "data": ("Data modules", "[Configuration](../config.md#data) lists the options.", ("data",)),
    "training": (
        "Augmentation, schedules, callbacks and loggers",
        "Parts of the application that the other config groups build.",
        ("augmentation", "scheduler", "callbacks", "trainer", "logger"),
    ),
}
"""Title, introduction and config groups for the other pages of the application."""

DATA_SPEC = f"{APPLICATION}.data.spec.DataSpec"


def pages() -> dict[str, Page]:
    """Returns all API pages by the stem of their file."""
    plugin = {
        stem: Page(TITLES.get(stem, ""), "", tuple(f"{PLUGIN}.{name}" for name in names))
        for stem, names in PLUGIN_PAGES.items()
    }
    packages = {
        stem: Page(title, introduction, tuple(f"{APPLICATION}.{stem}.{name}" for name in _public_names(stem)))
        for stem, (title, introduction) in PACKAGES.items()
    }
    groups = {
        stem: Page(title, introduction, (*([DATA_SPEC] if stem == "data" else ()), *sorted(_targets(config_groups))))
        for stem, (title, introduction, config_groups) in GROUPS.items()
    }
    return {**plugin, "testing": TESTING, **packages, **groups}


@cache
def documented_names() -> frozenset[str]:
    """Returns the full names of all objects on API pages."""
    return frozenset(name for page in pages().values() for name in page.names)


def api_pages() -> dict[str, str]:
    """Returns the text of each API page by its path in the repository."""
    return {f"{API}/{stem}.md": page.render() for stem, page in pages().items()}


def _public_names(package: str) -> list[str]:
    exported = import_module(f"{APPLICATION}.{package}").__all__
    return sorted(exported, key=lambda name: (not name[0].isupper(), name.lower()))


def _targets(groups: Iterable[str]) -> set[str]:
    """Returns the application's own classes and functions that the options of some config groups build."""
    files = [file for group in groups for file in sorted((CONF / group).rglob("*.yaml"))]
    entries = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]
    return {target for entry in entries for target in _nested_targets(entry) if target.startswith(f"{APPLICATION}.")}


def _nested_targets(entry: object) -> Iterable[str]:
    if isinstance(entry, dict):
        if "_target_" in entry:
            yield str(entry["_target_"])
        for value in entry.values():
            yield from _nested_targets(value)
