"""Compresses a network progressively within the budget."""

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
from stormproof_train.compression.artifact_builder import ORIGINAL, ArtifactBuilder, Candidate
from stormproof_train.compression.budget import Budget
from stormproof_train.compression.choice import reaches_target
from stormproof_train.compression.fine_tuning import FineTuning, count_steps, run_fine_tuning
from stormproof_train.compression.folder import CompressionFolder
from stormproof_train.compression.original import OriginalModel
from stormproof_train.compression.settings import Settings, search_compression_ratio
from stormproof_train.compression.structure.factoring import choose_ranks, factorize
from stormproof_train.compression.structure.macs import count_macs
from stormproof_train.compression.structure.pruning import UnitPruner
from stormproof_train.compression.structure.rebuild import Structure
from stormproof_train.compression.structure.shapes import changed_shapes
from stormproof_train.compression.teacher import supports_distillation
from stormproof_train.errors import ExitCode, UserError, first_line
from stormproof_train.initialization.checkpoint import extract_network_weights, read_checkpoint
from stormproof_train.losses import loss_properties
from stormproof_train.run.subprocess_run import ChildRunError

MIN_DENSE_SHARE = 0.5
"""Minimum share of weights in dense layers for factoring by default."""


@dataclass(frozen=True)
class CompressionStep:
    """A network that was compressed and fine-tuned.

    Attributes:
        name: Name of the network and of its run.
        times: Minimum reduction of the multiply-accumulates.
        steps: Optimizer steps of the fine-tuning.
        outcome: Problem, if any. Empty on success.
    """

    name: str
    times: float
    steps: int
    outcome: str


class CompressionLoop:
    """Builds all artifacts that the settings allow.

    Attributes:
        artifacts: Artifacts, the original first.
        steps: Fine-tuning runs.
        skipped_messages: What was skipped, and why.
    """

    def __init__(
        self,
        original: OriginalModel,
        settings: Settings,
        folder: CompressionFolder,
        builder: ArtifactBuilder,
        budget: Budget,
    ) -> None:
        self._original, self._settings, self._folder = original, settings, folder
        self._builder, self._budget = builder, budget
        self._inputs = torch.from_numpy(builder.calibration.inputs)
        self._supports_distillation = supports_distillation(original.task.loss, original.spec.num_classes)
        self.artifacts: list[Artifact] = []
        self.steps: list[CompressionStep] = []
        self.skipped_messages: list[str] = []

    def run(self) -> None:
        """Builds all artifacts.

        Raises:
            RunError: If a fine-tuning run failed, or the network cannot be exported.
        """
        original = self._builder.original_candidate
        if self._settings.methods is not None and self._settings.allows("distill") and not self._supports_distillation:
            loss_name = loss_properties(self._original.task.loss).name
            self.skipped_messages.append(f"distill: {loss_name} does not support the outputs of a teacher as targets")
        self._build_artifacts(original)
        smallest_candidate = original
        if self._settings.allows("prune"):
            smallest_candidate = self._compress_progressively("prune", original)
        if self._settings.allows("factor") and (
            self._settings.methods is not None or _is_mostly_dense(original.network)
        ):
            self._compress_progressively("factor", original)
            if smallest_candidate is not original and self._settings.methods is not None:
                self._compress_progressively("factor", smallest_candidate)

    def _compress_progressively(self, method: str, base: Candidate) -> Candidate:
        """Compresses a network in steps and returns the smallest result within the budget."""
        accepted_candidates = {1.0: base}

        def try_ratio(ratio: float) -> bool:
            # a factored layer cannot be factored again
            previous = (
                accepted_candidates[
                    max(accepted_ratio for accepted_ratio in accepted_candidates if accepted_ratio < ratio)
                ]
                if method == "prune"
                else base
            )
            candidate = self._build_candidate(method, previous, base, ratio)
            if candidate is None:
                return False
            artifacts = self._build_artifacts(candidate)
            if not self._budget.allows(artifacts[0].degradation):
                self.steps[-1] = dataclasses.replace(self.steps[-1], outcome="degradation too large")
                return False
            accepted_candidates[ratio] = candidate
            target = self._settings.target
            return not target or not any(reaches_target(artifact, self.artifacts[0], target) for artifact in artifacts)

        search_compression_ratio(try_ratio)
        return accepted_candidates[max(accepted_candidates)]

    def _build_candidate(self, method: str, previous: Candidate, base: Candidate, ratio: float) -> Candidate | None:
        """Builds a network that is ``ratio`` times smaller than the base. Returns None if that is not possible."""
        label = {"prune": "pruned", "factor": "factored"}[method]
        name = f"{label}-{ratio:g}x" if base.name == ORIGINAL else f"{base.name}-{label}-{ratio:g}x"
        start_checkpoint = self._folder.start_checkpoints_dir / f"{name}.ckpt"
        try:
            structure = self._prepare_structure(
                start_checkpoint, method, previous, math.floor(count_macs(base.network, self._inputs) / ratio)
            )
        except (UserError, ValueError) as error:
            self._add_skipped(f"{name}: {first_line(error)}")
            return None
        fine_tuning = FineTuning(
            name,
            self._folder.runs_dir,
            self._folder.path.name,
            start_checkpoint,
            structure,
            count_steps(self._original, self._settings.training),
            uses_teacher=self._settings.allows("distill") and self._supports_distillation,
        )
        weights = self._fine_tune(fine_tuning, ratio)
        if weights is None:
            return None
        description = (
            f"{label} to at least {ratio:g} times fewer multiply-accumulates, "
            f"fine-tuned for {fine_tuning.steps:,} steps"
        )
        description += " with the original as teacher" if fine_tuning.uses_teacher else ""
        description = description if base.name == ORIGINAL else f"{base.method}; {description}"
        return Candidate(name, self._original.build_network(structure, weights), structure, description)

    def _prepare_structure(self, start_checkpoint: Path, method: str, previous: Candidate, max_macs: int) -> Structure:
        """Shrinks a network and saves it, unless it exists. Returns its structure."""
        if not start_checkpoint.exists():
            network, structure = self._shrink(method, previous, max_macs)
            with atomic_write(start_checkpoint) as file:
                torch.save({"state_dict": network.state_dict(), "structure": dataclasses.asdict(structure)}, file)
        return Structure(**read_checkpoint(start_checkpoint)["structure"])

    def _add_skipped(self, sentence: str) -> None:
        """Adds a message, unless the network has one already for a smaller ratio."""
        if not any(message.partition("-")[0] == sentence.partition("-")[0] for message in self.skipped_messages):
            self.skipped_messages.append(sentence)

    def _fine_tune(self, fine_tuning: FineTuning, ratio: float) -> Mapping[str, torch.Tensor] | None:
        """Returns the weights after fine-tuning, or None if it diverged."""
        log, outcome = self._folder.logs_dir / f"{fine_tuning.name}.log", ""
        try:
            checkpoint = run_fine_tuning(fine_tuning, self._original, self._folder.configs_dir, log)
            return extract_network_weights(read_checkpoint(checkpoint))
        except ChildRunError as error:
            if error.exit_code is not ExitCode.DIVERGED:
                raise
            outcome = f"failed: {error}"
            return None
        finally:
            self.steps.append(CompressionStep(fine_tuning.name, ratio, fine_tuning.steps, outcome))

    def _shrink(self, method: str, previous: Candidate, max_macs: int) -> tuple[nn.Module, Structure]:
        if method == "prune":
            network = UnitPruner(previous.network, self._inputs, self._settings.block).prune_to(max_macs)
            original_network = self._original.build_network(Structure(), self._original.task.network.state_dict())
            return network, Structure(changed_shapes(network, original_network))
        ranks = choose_ranks(previous.network, self._inputs, max_macs)
        network = self._original.build_network(previous.structure, previous.network.state_dict())
        factorize(network, ranks, self._inputs)
        return network, Structure(previous.structure.shapes, ranks)

    def _build_artifacts(self, candidate: Candidate) -> list[Artifact]:
        """Builds the artifacts of a network, the one in float32 first."""
        artifacts = [self._builder.build(candidate)]
        quantizations: list[Quantization] = ["int8"] if self._settings.allows("int8") else []
        is_transformer = self._settings.methods is not None or _has_layer_norm(candidate.network)
        if self._settings.allows("weights_int8") and is_transformer:
            quantizations.append("weights_int8")
        for quantization in quantizations:
            try:
                artifacts.append(self._builder.build(candidate, quantization))
            except UserError as error:
                self.skipped_messages.append(str(error))
        self.artifacts += artifacts
        return artifacts


def _is_mostly_dense(network: nn.Module) -> bool:
    num_weights = sum(parameter.numel() for parameter in network.parameters())
    num_dense_weights = sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
    return num_dense_weights > MIN_DENSE_SHARE * num_weights


def _has_layer_norm(network: nn.Module) -> bool:
    return any(isinstance(module, nn.LayerNorm) for module in network.modules())
