"""The run that is compressed: its network with its weights, and what smaller ones are built and trained by."""

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
from stormproof_train.compression.structure.rebuild import Structure, smaller
from stormproof_train.config.identity import differences
from stormproof_train.config.plan import Plan, read_plan
from stormproof_train.config.redaction import without_secret, without_secrets
from stormproof_train.console import say
from stormproof_train.data.content_sketch import refuse_other_files
from stormproof_train.data.spec import DataSpec, fingerprint_of, spec_of
from stormproof_train.errors import UserError
from stormproof_train.initialization.checkpoint import read_checkpoint
from stormproof_train.losses import facts_of
from stormproof_train.metrics import HEADLINE, Headline
from stormproof_train.run.folder import RunFolder
from stormproof_train.run.trained_weights import Trained, config_to_train_on, find
from stormproof_train.task import Task

_UNTOUCHED = {"_target_": "stormproof_train.initialization.torch_default"}


@dataclass(frozen=True)
class Original:
    """A trained network, and all that is known of it.

    Attributes:
        trained: where its weights are.
        config: of a run that trains on as it was trained, plain values.
        plan: the same, read.
        data: its data module.
        spec: of the data.
        task: with its weights, in evaluation mode.
        steps: that it was trained for.
        tested: whether its run reads the test split.
        secrets: words of the command line that are written nowhere.
    """

    trained: Trained
    config: Mapping[str, Any]
    plan: Plan
    data: pl.LightningDataModule
    spec: DataSpec
    task: Task
    steps: int
    tested: bool
    secrets: Sequence[str] = ()

    @property
    def headline(self) -> Headline:
        """The metric that ranks networks of its task."""
        return HEADLINE[self.spec.task]

    @property
    def num_outputs(self) -> int:
        """Of its network."""
        return self.spec.num_outputs * facts_of(self.task.loss).outputs_per_target

    def network(self, structure: Structure, weights: Mapping[str, torch.Tensor]) -> nn.Module:
        """A network of that structure with these weights, in evaluation mode."""
        network = self.plan.model.build(
            input_shape=self.spec.input_shape,
            num_outputs=self.num_outputs,
            num_classes=self.spec.num_classes,
            activation=activation_factory(self.plan.activation.factory()),
        )
        network = smaller(network, structure.shapes, structure.ranks)
        network.load_state_dict(dict(weights))
        return network.eval()


def read_original(path: Path, conf: Path, words: Sequence[str]) -> Original:
    """Finds a run, and builds what it has trained.

    Args:
        path: of the run's folder, or one of its checkpoints.
        conf: the folder of the application's configs.
        words: overrides of how a fine-tuning run is trained.

    Raises:
        UserError: if there is none, or its data have changed.
    """
    trained = find(path)
    config = config_to_train_on(trained.run, conf, words)
    plan = read_plan(config)
    pl.seed_everything(plan.seed, workers=True, verbose=False)
    data = plan.data.build(seed=plan.seed)
    folder = RunFolder(trained.run.parent, trained.run.name)
    if Lease.is_held(folder.path):
        raise UserError(f"{folder.path} is still training: wait for its end, or stop it")
    if folder.finished() is None:
        say(f"warning: the run {folder.path} has not finished; what is compressed is {trained.checkpoint.name}")
    _refuse_other_data(folder, plan, fingerprint_of(data))
    refuse_other_files(folder.path, data)
    _tell_of_callbacks(folder, plan)
    content = read_checkpoint(trained.checkpoint)
    spec = spec_of(data)
    untouched = read_plan({**config, "initialization": _UNTOUCHED, "augmentation": {}})
    task = build_task(untouched, data, spec, plan.loss_for(spec.task))
    task.on_load_checkpoint(content)
    task.load_state_dict(content["state_dict"])
    steps = int((folder.finished() or {"steps": content["global_step"]})["steps"])
    secrets = [word for word in words if without_secret(word) != word]
    return Original(
        trained, config, plan, data, task.spec, task.eval(), steps, bool(folder.settings().get("test", True)), secrets
    )


def _refuse_other_data(folder: RunFolder, plan: Plan, fingerprint: str | None) -> None:
    """They may lie elsewhere, and be the same."""
    before, now = folder.settings(), without_secrets(plan.settings(None, fingerprint))
    changed = [each for each in differences(before, now) if each.startswith("data.")]
    if changed:
        raise UserError(
            f"the data are not those that {folder.path} was trained on ({'; '.join(changed)}): put the old ones back"
        )


def _tell_of_callbacks(folder: RunFolder, plan: Plan) -> None:
    own = [str(each.get("_target_")) for each in folder.settings()["callbacks"].values()]
    missing = sorted(set(own) - {target.path for target in plan.callbacks.values()})
    if missing:
        say(
            f"fine-tuning is without {', '.join(missing)} of the run: callbacks=… gives it others than the default ones"
        )
