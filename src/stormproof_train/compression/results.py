"""What a compression has come to: numbers, page, cards, and the best artifact on top."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from stormproof.checkpoint import atomic_write
from stormproof_train.compression.artifact import MODEL, WEIGHTS, Artifact
from stormproof_train.compression.artifact_builder import ORIGINAL, Workshop
from stormproof_train.compression.budget import Budget, lost
from stormproof_train.compression.choice import beaten_by, best, remarks
from stormproof_train.compression.deployment.int8_cpu import cpu_has_vnni, int8_told
from stormproof_train.compression.driver import Driver
from stormproof_train.compression.folder import CompressionFolder
from stormproof_train.compression.original import Original
from stormproof_train.compression.report.card import card
from stormproof_train.compression.report.compression_page import compression_page
from stormproof_train.compression.settings import Settings
from stormproof_train.evaluation.comparison import mcnemar
from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.report.kit.json_numbers import plain
from stormproof_train.report.kit.page import html
from stormproof_train.run.folder import RunFolder

_LESS = {"latency": "faster for sure", "size": "smaller", "macs": "less to compute"}
NUMBERS, PAGE, CARD = "answer.json", "report.html", "README.md"


class Answer:
    """Says it, and writes it down.

    Args:
        original: what was compressed.
        settings: of the compression.
        folder: of it.
        workshop: that made the artifacts.
        budget: what could be lost.
        driver: which has worked.
    """

    def __init__(
        self,
        original: Original,
        settings: Settings,
        folder: CompressionFolder,
        workshop: Workshop,
        budget: Budget,
        driver: Driver,
    ) -> None:
        self._original, self._settings, self._folder = original, settings, folder
        self._workshop, self._budget, self._driver = workshop, budget, driver

    def write(self) -> dict[str, Any]:
        """Reads the test split, for the original and what keeps to the budget, and writes what is known then."""
        artifacts = self._driver.artifacts
        chosen = best(artifacts, self._budget, self._settings.target, self._settings.minimize)
        if self._reads_test:
            for each in artifacts:
                if self._is_within(each):
                    self._workshop.test(each.name)
        numbers = plain(self._numbers(chosen))
        for told in numbers["artifacts"]:
            self._write(Path(told["folder"]) / CARD, card(numbers, told, self._workshop.facts))
        for name in (MODEL, WEIGHTS, CARD):
            if chosen is None:
                (self._folder.path / name).unlink(missing_ok=True)
            else:
                self._write(name, (self._workshop.folder(chosen.name) / name).read_bytes())
        self._write(NUMBERS, f"{json.dumps(numbers, indent=1, allow_nan=False)}\n")
        self._write(PAGE, html(compression_page(numbers)))
        return numbers

    def _write(self, name: str | Path, content: bytes | str) -> None:
        """Whole or not at all, and not where it is there already: somebody may be using it."""
        path, wanted = self._folder.path / name, content.encode() if isinstance(content, str) else content
        if not path.exists() or path.read_bytes() != wanted:
            with atomic_write(path) as file:
                file.write(wanted)

    def _is_within(self, artifact: Artifact) -> bool:
        return artifact.name == ORIGINAL or self._budget.holds(artifact.lost)

    def _numbers(self, chosen: Artifact | None) -> dict[str, Any]:
        original, settings, workshop = self._original, self._settings, self._workshop
        headline = original.headline
        tested = [each for each in self._driver.artifacts if self._is_within(each)]
        return {
            "name": self._folder.path.name, "run": str(original.trained.run),
            "checkpoint": str(original.trained.checkpoint), "task": original.spec.task, "headline": headline.name,
            "higher_is_better": headline.higher_is_better,
            "budget": asdict(self._budget) if self._budget.told else None, "target": settings.target,
            "minimize": settings.minimize,
            "machine": {"processor": _processor(), "threads": settings.threads, "int8": int8_told(cpu_has_vnni())},
            "made_with": {
                "network": {each: str(original.config[each]["_target_"]) for each in ("model", "activation", "data")},
                "versions": {name: version(name) for name in ("stormproof", "torch", "onnxruntime", "torch-pruning")},
            },
            "samples": {
                "validation": len(workshop.validation),
                "test": len(workshop.test_samples) if self._reads_test else None,
                "calibration": len(workshop.calibration),
            },
            "artifacts": [self._told(each, tested) for each in self._driver.artifacts],
            "best": None if chosen is None else chosen.name,
            "why_none": None if chosen is not None else self._why_none(),
            "skipped": [*self._driver.skipped, *self._not_looked_at()],
            "fine_tuning": [
                {**asdict(each), "run": str(self._folder.runs / each.name), "seconds": self._seconds(each.name)}
                for each in self._driver.steps
            ],
        }  # fmt: skip

    def _told(self, artifact: Artifact, tested: list[Artifact]) -> dict[str, Any]:
        first = self._driver.artifacts[0]
        values = asdict(artifact)
        told: dict[str, Any] = {
            "validation": values.pop("value"), **values, "within": self._is_within(artifact),
            "test": None, "test_lost": None, "mcnemar": None,
            "lost_by_class": self._lost_by_class(artifact),
            "beaten_by": beaten_by(artifact, [each for each in tested if each is not artifact]),
            "remarks": remarks(artifact, first),
            "folder": str(self._workshop.folder(artifact.name).relative_to(self._folder.path)),
        }  # fmt: skip
        if artifact not in tested or not self._reads_test:
            return told
        before, said = (self._workshop.predictions(name, "test") for name in (ORIGINAL, artifact.name))
        evaluation = evaluate(said)
        if evaluation is not None:
            told["test"] = evaluation["headline"][self._original.headline.name]
            told["calibration_error"] = evaluation.get("calibration_error")
        if artifact.name != ORIGINAL:
            told["test_lost"] = asdict(lost(before, said))
            if said.is_classification:
                told["mcnemar"] = asdict(mcnemar(before, said))
        return told

    def _lost_by_class(self, artifact: Artifact) -> list[dict[str, Any]]:
        """By how much the recall of each class that came is worse than the original's, on validation."""
        before, said = (self._workshop.predictions(name) for name in (ORIGINAL, artifact.name))
        if not said.is_classification:
            return []
        right = (before.classes == before.target).astype(float) - (said.classes == said.target)
        names = self._workshop.facts.classes
        return [
            {"name": names[number], "lost": float(right[said.target == number].mean())}
            for number in np.unique(said.target).tolist()
        ]

    def _why_none(self) -> str:
        if not self._driver.artifacts[1:]:
            return f"nothing could be made of it: {'; '.join(self._driver.skipped)}"
        within = [each for each in self._driver.artifacts[1:] if self._is_within(each)]
        if not within:
            return f"no artifact keeps to budget={self._budget.told}: allow more, or train longer (training=1)"
        if self._settings.target:
            wanted = ", ".join(f"target.{name}={times:g}" for name, times in self._settings.target.items())
            return f"no artifact within what may be lost reaches {wanted}: want less, or allow more"
        smaller = best(self._driver.artifacts, self._budget, self._settings.target, "size")
        hint = f"; the smallest file would be {smaller.name}" if smaller else ""
        return f"no artifact that keeps to budget={self._budget.told} is {_LESS[self._settings.minimize]}{hint}"

    @property
    def _reads_test(self) -> bool:
        return self._original.tested if self._settings.test is None else self._settings.test

    def _not_looked_at(self) -> list[str]:
        splits = {"validation": self._workshop.validation}
        if self._reads_test:
            splits["test"] = self._workshop.test_samples
        return [
            f"of {samples.available:,} {split} samples {len(samples):,} were looked at, evenly picked (samples=)"
            for split, samples in splits.items()
            if samples.available is not None and samples.available > len(samples)
        ]

    def _seconds(self, name: str) -> float | None:
        summary = RunFolder(self._folder.runs, name).finished()
        return None if summary is None else summary["seconds"]


def _processor() -> str:
    """Its name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines() if cpuinfo.exists() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
