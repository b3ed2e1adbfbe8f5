"""Loads the run to compress, with all that is needed to build and train smaller networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from stormproof.checkpoint import Lease
from stormproof_train.activations import activation_factory
from stormproof_train.build_task import build_task
from stormproof_train.compression.structure.rebuild import Structure, apply_structure
from stormproof_train.config.identity import list_differences
from stormproof_train.config.plan import Plan, read_plan
from stormproof_train.config.redaction import redact_override, redact_settings
from stormproof_train.console import print_line
from stormproof_train.data.content_sketch import check_files_unchanged
from stormproof_train.data.spec import DataSpec, get_fingerprint, infer_spec
from stormproof_train.errors import UserError
from stormproof_train.initialization.checkpoint import read_checkpoint
from stormproof_train.losses import loss_properties
from stormproof_train.metric_direction import HEADLINE, Headline
from stormproof_train.run.folder import RunFolder
from stormproof_train.run.trained_weights import TrainedWeights, compose_training_config, resolve_weights
from stormproof_train.task import Task

_DEFAULT_INITIALIZATION = {"_target_": "stormproof_train.initialization.torch_default"}


@dataclass(frozen=True)
class OriginalModel:
    """A trained model.

    Attributes:
        trained_weights: Location of its weights.
        config: Config of a run that continues its training, as plain values.
        plan: Plan of that config.
        data: Data module.
        spec: Specification of the data.
        task: Task with the weights, in evaluation mode.
        steps: Optimizer steps of the run.
        reads_test_split: Whether the run reads the test split.
        secret_overrides: Overrides that must not be written to files.
    """

    trained_weights: TrainedWeights
    config: Mapping[str, Any]
    plan: Plan
    data: pl.LightningDataModule
    spec: DataSpec
    task: Task
    steps: int
    reads_test_split: bool
    secret_overrides: Sequence[str] = ()

    @property
    def headline(self) -> Headline:
        """Headline metric of the task."""
        return HEADLINE[self.spec.task]

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the network."""
        return self.spec.num_outputs * loss_properties(self.task.loss).outputs_per_target

    def build_network(self, structure: Structure, weights: Mapping[str, torch.Tensor]) -> nn.Module:
        """Builds a network with the given structure and weights, in evaluation mode."""
        network = self.plan.model.build(
            input_shape=self.spec.input_shape,
            num_outputs=self.num_outputs,
            num_classes=self.spec.num_classes,
            activation=activation_factory(self.plan.activation.factory()),
        )
        network = apply_structure(network, structure.shapes, structure.ranks)
        network.load_state_dict(dict(weights))
        return network.eval()


def load_original(path: Path, conf: Path, overrides: Sequence[str]) -> OriginalModel:
    """Loads a trained run.

    Args:
        path: Folder of the run, or one of its checkpoints.
        conf: Folder of the application's configs.
        overrides: Overrides of the fine-tuning runs.

    Raises:
        UserError: If there is no run, it is still active, or its data have changed.
    """
    trained_weights = resolve_weights(path)
    config = compose_training_config(trained_weights.run, conf, overrides)
    plan = read_plan(config)
    pl.seed_everything(plan.seed, workers=True, verbose=False)
    data = plan.data.build(seed=plan.seed)
    folder = RunFolder(trained_weights.run.parent, trained_weights.run.name)
    if Lease.is_active(folder.path):
        raise UserError(f"{folder.path} is still active: wait until it ends, or stop it")
    if folder.read_summary() is None:
        print_line(f"warning: the run {folder.path} has not finished; compressing {trained_weights.checkpoint.name}")
    _check_same_data(folder, plan, get_fingerprint(data))
    check_files_unchanged(folder.path, data)
    _warn_missing_callbacks(folder, plan)
    checkpoint = read_checkpoint(trained_weights.checkpoint)
    spec = infer_spec(data)
    default_plan = read_plan({**config, "initialization": _DEFAULT_INITIALIZATION, "augmentation": {}})
    task = build_task(default_plan, data, spec, plan.bind_loss(spec.task))
    task.on_load_checkpoint(checkpoint)
    task.load_state_dict(checkpoint["state_dict"])
    steps = int((folder.read_summary() or {"steps": checkpoint["global_step"]})["steps"])
    secret_overrides = [override for override in overrides if redact_override(override) != override]
    return OriginalModel(
        trained_weights,
        config,
        plan,
        data,
        task.spec,
        task.eval(),
        steps,
        bool(folder.read_settings().get("test", True)),
        secret_overrides,
    )


def _check_same_data(folder: RunFolder, plan: Plan, fingerprint: str | None) -> None:
    """Checks that the data are unchanged, even if they are in another place."""
    old_settings, new_settings = folder.read_settings(), redact_settings(plan.settings(None, fingerprint))
    data_differences = [
        difference for difference in list_differences(old_settings, new_settings) if difference.startswith("data.")
    ]
    if data_differences:
        raise UserError(
            f"the data differ from those that {folder.path} was trained on ({'; '.join(data_differences)}): restore "
            "the original data"
        )


def _warn_missing_callbacks(folder: RunFolder, plan: Plan) -> None:
    callback_paths = [str(callback.get("_target_")) for callback in folder.read_settings()["callbacks"].values()]
    missing_paths = sorted(set(callback_paths) - {target.path for target in plan.callbacks.values()})
    if missing_paths:
        print_line(
            f"warning: fine-tuning runs without {', '.join(missing_paths)}, which the run used: set callbacks=… to add "
            "callbacks"
        )
