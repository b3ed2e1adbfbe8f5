"""Makes a network smaller and smaller, as long as it keeps to the budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from stormproof.checkpoint import atomic_write
from stormproof_train.compression.artifact import Artifact, Quantization
from stormproof_train.compression.artifact_builder import ORIGINAL, Candidate, Workshop
from stormproof_train.compression.budget import Budget
from stormproof_train.compression.choice import reaches
from stormproof_train.compression.fine_tuning import FineTuning, fine_tuned, steps_of
from stormproof_train.compression.folder import CompressionFolder
from stormproof_train.compression.original import Original
from stormproof_train.compression.schedule import climb
from stormproof_train.compression.settings import Settings
from stormproof_train.compression.structure.factoring import factor, ranks_for
from stormproof_train.compression.structure.macs import macs
from stormproof_train.compression.structure.pruning import Pruning
from stormproof_train.compression.structure.rebuild import Structure
from stormproof_train.compression.structure.shapes import shapes_of
from stormproof_train.compression.teacher import can_teach
from stormproof_train.errors import ExitCode, UserError, first_line
from stormproof_train.initialization.checkpoint import read_checkpoint, weights_of
from stormproof_train.losses import facts_of
from stormproof_train.run.subprocess_run import OwnProcessError

ENOUGH = 0.5
"""Of the weights, from which share on dense layers are worth being factored by themselves."""


@dataclass(frozen=True)
class Step:
    """A network that was made smaller and trained on.

    Attributes:
        name: of it, and of its run.
        times: how many times fewer multiply-accumulates it was to have at least.
        steps: of the fine-tuning.
        became: what is to be said against it; empty where nothing is.
    """

    name: str
    times: float
    steps: int
    became: str


class Driver:
    """Tries what the settings allow.

    Args:
        original: what is compressed.
        settings: of the compression.
        folder: of it.
        workshop: makes the artifacts.
        budget: what may be lost.

    Attributes:
        artifacts: the original first.
        steps: the fine-tunings.
        skipped: what was not done, and why.
    """

    def __init__(
        self, original: Original, settings: Settings, folder: CompressionFolder, workshop: Workshop, budget: Budget
    ) -> None:
        self._original, self._settings, self._folder = original, settings, folder
        self._workshop, self._budget = workshop, budget
        self._inputs = torch.from_numpy(workshop.calibration.inputs)
        self._can_teach = can_teach(original.task.loss, original.spec.num_classes)
        self.artifacts: list[Artifact] = []
        self.steps: list[Step] = []
        self.skipped: list[str] = []

    def work(self) -> None:
        """Makes all artifacts.

        Raises:
            RunError: if a fine-tuning did not finish, or nothing of this network can be made an artifact.
        """
        first = self._workshop.original
        if self._settings.methods is not None and self._settings.allows("distill") and not self._can_teach:
            name = facts_of(self._original.task.loss).name
            self.skipped.append(f"distill: {name} takes no teacher's word for a target")
        self._make(first)
        best = first
        if self._settings.allows("prune"):
            best = self._smaller_and_smaller("prune", first)
        if self._settings.allows("factor") and (self._settings.methods is not None or _is_dense(first.network)):
            self._smaller_and_smaller("factor", first)
            if best is not first and self._settings.methods is not None:
                self._smaller_and_smaller("factor", best)

    def _smaller_and_smaller(self, method: str, first: Candidate) -> Candidate:
        """Goes on from a network, and gives the smallest that kept to the budget."""
        good = {1.0: first}

        def goes_on(times: float) -> bool:
            # factors of a layer that was factored mean nothing
            before = good[max(each for each in good if each < times)] if method == "prune" else first
            candidate = self._candidate(method, before, first, times)
            if candidate is None:
                return False
            made = self._make(candidate)
            if not self._budget.holds(made[0].lost):
                self.steps[-1] = dataclasses.replace(self.steps[-1], became="too much lost")
                return False
            good[times] = candidate
            target = self._settings.target
            return not target or not any(reaches(each, self.artifacts[0], target) for each in made)

        climb(goes_on)
        return good[max(good)]

    def _candidate(self, method: str, before: Candidate, first: Candidate, times: float) -> Candidate | None:
        """A network so many times smaller than the first, from one that was good; None where there is none."""
        word = {"prune": "pruned", "factor": "factored"}[method]
        name = f"{word}-{times:g}x" if first.name == ORIGINAL else f"{first.name}-{word}-{times:g}x"
        start = self._folder.starts / f"{name}.ckpt"
        try:
            structure = self._begun(start, method, before, math.floor(macs(first.network, self._inputs) / times))
        except (UserError, ValueError) as error:
            self._skip(f"{name}: {first_line(error)}")
            return None
        asked = FineTuning(
            name,
            self._folder.runs,
            self._folder.path.name,
            start,
            structure,
            steps_of(self._original, self._settings.training),
            taught=self._settings.allows("distill") and self._can_teach,
        )
        weights = self._trained_on(asked, times)
        if weights is None:
            return None
        told = f"{word} to at least {times:g} times fewer multiply-accumulates, fine-tuned for {asked.steps:,} steps"
        told += " with the original as teacher" if asked.taught else ""
        told = told if first.name == ORIGINAL else f"{first.method}; {told}"
        return Candidate(name, self._original.network(structure, weights), structure, told)

    def _begun(self, start: Path, method: str, before: Candidate, most: int) -> Structure:
        """Makes a network smaller and keeps it, unless that has been done; how it is built."""
        if not start.exists():
            network, structure = self._made_smaller(method, before, most)
            with atomic_write(start) as file:
                torch.save({"state_dict": network.state_dict(), "structure": dataclasses.asdict(structure)}, file)
        return Structure(**read_checkpoint(start)["structure"])

    def _skip(self, sentence: str) -> None:
        """Once for each network: smaller still is no news."""
        if not any(each.partition("-")[0] == sentence.partition("-")[0] for each in self.skipped):
            self.skipped.append(sentence)

    def _trained_on(self, asked: FineTuning, times: float) -> Mapping[str, torch.Tensor] | None:
        """The weights that a fine-tuning came to; None where it diverged."""
        log, became = self._folder.logs / f"{asked.name}.log", ""
        try:
            checkpoint = fine_tuned(asked, self._original, self._folder.configs, log)
            return weights_of(read_checkpoint(checkpoint))
        except OwnProcessError as error:
            if error.exit_code is not ExitCode.DIVERGED:
                raise
            became = f"failed: {error}"
            return None
        finally:
            self.steps.append(Step(asked.name, times, asked.steps, became))

    def _made_smaller(self, method: str, before: Candidate, most: int) -> tuple[nn.Module, Structure]:
        if method == "prune":
            network = Pruning(before.network, self._inputs, self._settings.block).to(most)
            fresh = self._original.network(Structure(), self._original.task.network.state_dict())
            return network, Structure(shapes_of(network, fresh))
        ranks = ranks_for(before.network, self._inputs, most)
        network = self._original.network(before.structure, before.network.state_dict())
        factor(network, ranks, self._inputs)
        return network, Structure(before.structure.shapes, ranks)

    def _make(self, candidate: Candidate) -> list[Artifact]:
        """The artifacts of a network, that in float32 first."""
        made = [self._workshop.artifact(candidate)]
        quantizations: list[Quantization] = ["int8"] if self._settings.allows("int8") else []
        transforms = self._settings.methods is not None or _has_layer_norm(candidate.network)
        if self._settings.allows("weights_int8") and transforms:
            quantizations.append("weights_int8")
        for quantization in quantizations:
            try:
                made.append(self._workshop.artifact(candidate, quantization))
            except UserError as error:
                self.skipped.append(str(error))
        self.artifacts += made
        return made


def _is_dense(network: nn.Module) -> bool:
    weights = sum(each.numel() for each in network.parameters())
    dense = sum(each.weight.numel() for each in network.modules() if isinstance(each, nn.Linear))
    return dense > ENOUGH * weights


def _has_layer_norm(network: nn.Module) -> bool:
    return any(isinstance(each, nn.LayerNorm) for each in network.modules())
