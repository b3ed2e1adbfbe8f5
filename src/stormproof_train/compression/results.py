"""Writes the results of a compression: numbers, page, model cards and a copy of the recommended artifact."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np

from stormproof.checkpoint import atomic_write
from stormproof_train.compression.artifact import MODEL_FILE, WEIGHTS_FILE, Artifact
from stormproof_train.compression.artifact_builder import ORIGINAL, ArtifactBuilder
from stormproof_train.compression.budget import Budget, estimate_degradation
from stormproof_train.compression.choice import find_dominating, list_remarks, select_best
from stormproof_train.compression.compression_loop import CompressionLoop
from stormproof_train.compression.deployment.int8_cpu import cpu_has_vnni, describe_int8_support
from stormproof_train.compression.folder import CompressionFolder
from stormproof_train.compression.original import OriginalModel
from stormproof_train.compression.records import ArtifactNumbers, ClassDegradation, CompressionNumbers
from stormproof_train.compression.report.card import model_card
from stormproof_train.compression.report.compression_info import CompressionInfo, read_compression
from stormproof_train.compression.report.tables import (
    artifact_test_table,
    artifacts_table,
    costs_table,
    fine_tuning_table,
    methods_table,
)
from stormproof_train.compression.report.trade_offs import trade_off_charts
from stormproof_train.compression.report.verdict import sentences, tone
from stormproof_train.compression.settings import Settings
from stormproof_train.evaluation.comparison import mcnemar
from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.report.kit.json_numbers import to_json
from stormproof_train.report.kit.page import Page, Section, render_html
from stormproof_train.run.folder import RunFolder

_IMPROVEMENTS = {"latency": "significantly faster", "size": "smaller", "macs": "cheaper to compute"}
NUMBERS_FILE, PAGE_FILE, CARD_FILE = "answer.json", "report.html", "README.md"


class CompressionResult:
    """Collects and writes the results."""

    def __init__(
        self,
        original: OriginalModel,
        settings: Settings,
        folder: CompressionFolder,
        builder: ArtifactBuilder,
        budget: Budget,
        loop: CompressionLoop,
    ) -> None:
        self._original, self._settings, self._folder = original, settings, folder
        self._builder, self._budget, self._loop = builder, budget, loop

    def write(self) -> CompressionNumbers:
        """Tests the original and the artifacts within the budget, then writes all results."""
        artifacts = self._loop.artifacts
        best_artifact = select_best(artifacts, self._budget, self._settings.target, self._settings.minimize)
        if self._reads_test:
            for artifact in artifacts:
                if self._is_within_budget(artifact):
                    self._builder.predict_test_split(artifact.name)
        numbers: CompressionNumbers = to_json(self._collect_numbers(best_artifact))
        for entry in numbers["artifacts"]:
            self._write_if_changed(
                Path(entry["folder"]) / CARD_FILE, model_card(numbers, entry, self._builder.metadata)
            )
        for name in (MODEL_FILE, WEIGHTS_FILE, CARD_FILE):
            if best_artifact is None:
                (self._folder.path / name).unlink(missing_ok=True)
            else:
                self._write_if_changed(name, (self._builder.artifact_dir(best_artifact.name) / name).read_bytes())
        self._write_if_changed(NUMBERS_FILE, f"{json.dumps(numbers, indent=1, allow_nan=False)}\n")
        self._write_if_changed(PAGE_FILE, render_html(compression_page(numbers)))
        return numbers

    def _write_if_changed(self, name: str | Path, content: bytes | str) -> None:
        """Writes a file atomically, unless it has this content already, because other processes may be reading it."""
        path, data = self._folder.path / name, content.encode() if isinstance(content, str) else content
        if not path.exists() or path.read_bytes() != data:
            with atomic_write(path) as file:
                file.write(data)

    def _is_within_budget(self, artifact: Artifact) -> bool:
        return artifact.name == ORIGINAL or self._budget.allows(artifact.degradation)

    def _collect_numbers(self, best_artifact: Artifact | None) -> CompressionNumbers:
        original, settings, builder = self._original, self._settings, self._builder
        headline = original.headline
        tested_artifacts = [artifact for artifact in self._loop.artifacts if self._is_within_budget(artifact)]
        return {
            "name": self._folder.path.name, "run": str(original.trained_weights.run),
            "checkpoint": str(original.trained_weights.checkpoint), "task": original.spec.task,
            "headline": headline.name,
            "higher_is_better": headline.higher_is_better,
            "budget": {"requested": self._budget.requested, "allowed": self._budget.allowed}
            if self._budget.requested
            else None,
            "target": settings.target,
            "minimize": settings.minimize,
            "machine": {
                "processor": _processor_name(), "threads": settings.threads,
                "int8": describe_int8_support(cpu_has_vnni()),
            },
            "made_with": {
                "network": {key: str(original.config[key]["_target_"]) for key in ("model", "activation", "data")},
                "versions": {name: version(name) for name in ("stormproof", "torch", "onnxruntime", "torch-pruning")},
            },
            "samples": {
                "validation": len(builder.validation),
                "test": len(builder.test_samples) if self._reads_test else None,
                "calibration": len(builder.calibration),
            },
            "artifacts": [self._artifact_numbers(artifact, tested_artifacts) for artifact in self._loop.artifacts],
            "best": None if best_artifact is None else best_artifact.name,
            "why_none": None if best_artifact is not None else self._explain_no_recommendation(),
            "skipped": [*self._loop.skipped_messages, *self._describe_subsampling()],
            "fine_tuning": [
                {
                    "name": step.name, "times": step.times, "steps": step.steps, "outcome": step.outcome,
                    "run": str(self._folder.runs_dir / step.name), "seconds": self._run_seconds(step.name),
                }
                for step in self._loop.steps
            ],
        }  # fmt: skip

    def _artifact_numbers(self, artifact: Artifact, tested_artifacts: list[Artifact]) -> ArtifactNumbers:
        original_artifact = self._loop.artifacts[0]
        values = asdict(artifact)
        entry = cast("ArtifactNumbers", {
            "validation": values.pop("value"), **values, "within": self._is_within_budget(artifact),
            "test": None, "test_degradation": None, "mcnemar": None,
            "degradation_by_class": self._degradation_by_class(artifact),
            "dominated_by": find_dominating(
                artifact, [candidate for candidate in tested_artifacts if candidate is not artifact]
            ),
            "remarks": list_remarks(artifact, original_artifact),
            "folder": str(self._builder.artifact_dir(artifact.name).relative_to(self._folder.path)),
        })  # fmt: skip
        if artifact not in tested_artifacts or not self._reads_test:
            return entry
        original_predictions, predictions = (
            self._builder.load_predictions(name, "test") for name in (ORIGINAL, artifact.name)
        )
        evaluation = evaluate(predictions)
        if evaluation is not None:
            entry["test"] = evaluation["headline"][self._original.headline.name]
            entry["calibration_error"] = evaluation.get("calibration_error")
        if artifact.name != ORIGINAL:
            entry["test_degradation"] = estimate_degradation(original_predictions, predictions).as_dict()
            if predictions.is_classification:
                entry["mcnemar"] = mcnemar(original_predictions, predictions).as_dict()
        return entry

    def _degradation_by_class(self, artifact: Artifact) -> list[ClassDegradation]:
        """Returns the decrease in recall of each class that occurs in validation, compared with the original."""
        original_predictions, predictions = (self._builder.load_predictions(name) for name in (ORIGINAL, artifact.name))
        if not predictions.is_classification:
            return []
        correct_difference = (original_predictions.classes == original_predictions.target).astype(float) - (
            predictions.classes == predictions.target
        )
        class_names = self._builder.metadata.classes
        return [
            {
                "name": class_names[class_index],
                "degradation": float(correct_difference[predictions.target == class_index].mean()),
            }
            for class_index in np.unique(predictions.target).tolist()
        ]

    def _explain_no_recommendation(self) -> str:
        if not self._loop.artifacts[1:]:
            return f"no artifact could be built: {'; '.join(self._loop.skipped_messages)}"
        artifacts_within_budget = [
            artifact for artifact in self._loop.artifacts[1:] if self._is_within_budget(artifact)
        ]
        if not artifacts_within_budget:
            return f"no artifact is within budget={self._budget.requested}: raise it, or train longer (training=1)"
        if self._settings.target:
            targets_text = ", ".join(f"target.{name}={factor:g}" for name, factor in self._settings.target.items())
            return f"no artifact within the budget reaches {targets_text}: lower the target, or raise the budget"
        smallest_artifact = select_best(self._loop.artifacts, self._budget, self._settings.target, "size")
        hint = f"; the smallest file would be {smallest_artifact.name}" if smallest_artifact else ""
        return f"no artifact within budget={self._budget.requested} is {_IMPROVEMENTS[self._settings.minimize]}{hint}"

    @property
    def _reads_test(self) -> bool:
        return self._original.reads_test_split if self._settings.test is None else self._settings.test

    def _describe_subsampling(self) -> list[str]:
        splits = {"validation": self._builder.validation}
        if self._reads_test:
            splits["test"] = self._builder.test_samples
        return [
            f"{len(samples):,} of {samples.available:,} {split} samples were used, evenly spaced (samples=)"
            for split, samples in splits.items()
            if samples.available is not None and samples.available > len(samples)
        ]

    def _run_seconds(self, name: str) -> float | None:
        summary = RunFolder(self._folder.runs_dir, name).read_summary()
        return None if summary is None else summary["seconds"]


def _processor_name() -> str:
    """Returns the name of the processor, if the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines() if cpuinfo.exists() else []
    model_name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model_name or platform.processor() or platform.machine()


def compression_page(numbers: CompressionNumbers) -> Page:
    """Builds the page of a compression.

    Numbers may be None or not finite. Texts are not trusted.
    """
    compression = read_compression(numbers)
    return Page(
        title=numbers["name"],
        tone=tone(compression),
        sentences=sentences(numbers, compression),
        sections=[
            _artifacts_section(compression),
            _test_section(numbers, compression),
            Section("Trade-offs", charts=trade_off_charts(compression)),
            _methods_section(numbers, compression),
            Section("Notes", [str(message) for message in numbers["skipped"]]),
            _measurement_section(numbers),
        ],
    )


def _artifacts_section(compression: CompressionInfo) -> Section:
    if not compression.artifacts:
        return Section("Artifacts", ["No artifact was built."])
    return Section(
        "Artifacts",
        [
            f"{compression.metric.name} and its degradation are measured on validation.",
            "Ranges are 95% intervals. MACs are multiply-accumulates per sample.",
        ],
        tables=[("", artifacts_table(compression))],
        folded=[("Latency, memory and load time", costs_table(compression))],
    )


def _test_section(numbers: CompressionNumbers, compression: CompressionInfo) -> Section:
    table = artifact_test_table(compression)
    if not table.rows:
        return Section("Test split")
    num_samples = numbers["samples"]["test"]
    samples_note = f" It has {num_samples:,} samples." if num_samples else ""
    note = f"Artifacts within the budget were tested after the selection.{samples_note}"
    return Section("Test split", [f"{note} Ranges are 95% intervals."], tables=[("", table)])


def _methods_section(numbers: CompressionNumbers, compression: CompressionInfo) -> Section:
    runs = numbers["fine_tuning"]
    return Section(
        "Methods",
        tables=[
            *([("Artifacts", methods_table(compression))] if compression.artifacts else []),
            *([("Fine-tuning runs", fine_tuning_table(runs))] if runs else []),
        ],
    )


def _measurement_section(numbers: CompressionNumbers) -> Section:
    machine, samples = numbers["machine"], numbers["samples"]
    threads, calibration = machine["threads"], f"{samples['calibration']:,}"
    return Section(
        "Measurements",
        [
            f"{machine['processor']}, {threads} thread{'s' * (threads != 1)}; {machine['int8'].rstrip('.')}.",
            "Latencies of artifact and original were measured in alternation. They differ on other processors.",
            f"{samples['validation']:,} validation samples, and {calibration} training samples to calibrate int8.",
            f"Compressed checkpoint: {numbers['checkpoint']} of the run {numbers['run']}.",
        ],
    )
