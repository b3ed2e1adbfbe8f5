"""A resume with another script names the settings that differ from those of the checkpoint."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler

from stormproof import CheckpointRecovery, resumable
from stormproof.errors import NotResumableError
from stormproof.resume import script_settings
from stormproof.testing import FaultInjector
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, RegressionModule, make_loader, make_module, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


class Module(RegressionModule):
    """RegressionModule with an optimizer and a scheduler that a test chooses."""

    optimizer: Any = staticmethod(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    scheduler: Any = None

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())  # type: ignore[attr-defined]
        return [optimizer], [] if self.scheduler is None else [
            {"scheduler": self.scheduler(optimizer), "interval": "step"}
        ]


def start(folder: Path, loader: Any, *callbacks: Any, **options: Any) -> list[str]:
    """Returns the warnings of one attempt."""
    recovery = CheckpointRecovery(folder, every_n_train_steps=1, async_save=False)
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        make_trainer(callbacks=[recovery, *callbacks], **options).fit(
            make_module(), loader, ckpt_path=recovery.latest_checkpoint()
        )
    return [str(record.message) for record in records]


def test_a_loader_that_became_resumable_is_reported(tmp_path: Path):
    with pytest.raises(RuntimeError, match="injected fault"):
        start(tmp_path, make_loader(), FaultInjector().fail(step=4))
    messages = start(tmp_path, resumable(make_loader()))
    assert sum("contains no position in the data" in message for message in messages) == 1


def test_a_loader_that_is_no_longer_resumable_is_refused(tmp_path: Path):
    with pytest.raises(RuntimeError, match="injected fault"):
        start(tmp_path, resumable(make_loader()), FaultInjector().fail(step=4))
    with pytest.raises(NotResumableError, match=r"training loaders: 1. The script has resumable loaders: 0"):
        start(tmp_path, make_loader())


def fit(
    folder: Path,
    *callbacks: Any,
    optimizer: Any = Module.optimizer,
    scheduler: Any = None,
    is_earlier: bool = False,
    **options: Any,
) -> str:
    """Returns the warning about settings. With ``is_earlier``, an earlier release saved the checkpoint."""
    recovery = CheckpointRecovery(folder, every_n_train_steps=1, async_save=False)
    attributes = {"optimizer": staticmethod(optimizer), "scheduler": scheduler and staticmethod(scheduler)}
    module, trainer = (
        make_module(kind=type("Module", (Module,), attributes)),
        make_trainer(callbacks=[recovery, *callbacks], **options),
    )
    path = recovery.latest_checkpoint()
    if is_earlier:
        assert path is not None
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["stormproof"]["shared"]["settings"]
        torch.save(checkpoint, path)  # after it was verified
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        trainer.fit(module, resumable(make_loader()), ckpt_path=path)
    return "".join(str(record.message) for record in records if "The script differs" in str(record.message))


def interrupt(folder: Path, **options: Any) -> None:
    with pytest.raises(RuntimeError, match="injected fault"):
        fit(folder, FaultInjector().fail(step=4), **options)


def decay(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def cosine(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)


def sgd(**options: Any) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, **{"lr": 0.1, **options})


CHANGES = {
    "learning rate": ({}, {"optimizer": sgd(lr=0.5)}, "lr of optimizer 0 (checkpoint: 0.1, script: 0.5)"),
    "scheduled learning rate": (
        {"scheduler": decay},
        {"scheduler": decay, "optimizer": sgd(lr=0.5)},
        "lr of optimizer 0 (checkpoint: 0.1, script: 0.5)",
    ),
    "option": ({}, {"optimizer": sgd(weight_decay=0.01)}, "weight_decay of optimizer 0 (checkpoint: 0, script: 0.01)"),
    "scheduler": (
        {"scheduler": decay},
        {"scheduler": cosine},
        "schedulers (checkpoint: StepLR, script: CosineAnnealingLR)",
    ),
    "precision": ({}, {"precision": "bf16-mixed"}, "precision (checkpoint: 32-true, script: bf16-mixed)"),
    "accumulation": ({}, {"accumulate_grad_batches": 2}, "accumulate_grad_batches (checkpoint: 1, script: 2)"),
    "clipping": ({}, {"gradient_clip_val": 0.5}, "gradient_clip_val (checkpoint: None, script: 0.5)"),
    "nothing": ({"scheduler": decay}, {"scheduler": decay}, ""),
}


@pytest.mark.parametrize(("before", "after", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_a_setting_that_the_script_changed_is_named(before: Any, after: Any, expected: str, tmp_path: Path):
    interrupt(tmp_path, **before)
    assert expected in (message := fit(tmp_path, **after))
    assert bool(message) == bool(expected)


def one_cycle(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)


class Odd(torch.optim.SGD):
    """An optimizer with a learning rate in a tensor and an option that changes during training."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=torch.tensor(0.1), momentum=0.9)
        self.param_groups[0] |= {"betas": (0.9, 0.99), "count": 0}

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["count"] += 1
        return super().step(closure)


UNCHANGED = {
    "momentum schedule": {"scheduler": one_cycle, "optimizer": sgd(momentum=0.9)},
    "odd options": {"optimizer": Odd},
    "scheduled accumulation": {"accumulation": {1: 2}},
}


@pytest.mark.parametrize("is_earlier", [False, True])
@pytest.mark.parametrize("options", UNCHANGED.values(), ids=UNCHANGED.keys())
def test_the_same_script_causes_no_warning(options: Any, is_earlier: bool, tmp_path: Path):
    options = dict(options)
    scheduling = options.pop("accumulation", None)
    make_callbacks = lambda: [GradientAccumulationScheduler(scheduling)] if scheduling else []  # noqa: E731
    with pytest.raises(RuntimeError, match="injected fault"):
        fit(tmp_path, FaultInjector().fail(step=4), *make_callbacks(), max_epochs=2, **options)
    assert not fit(tmp_path, *make_callbacks(), max_epochs=2, is_earlier=is_earlier, **options)
    assert not fit(tmp_path, *make_callbacks(), max_epochs=3, **options)


def test_parameter_groups_that_a_callback_added_are_no_other_optimizer():
    script = {"optimizers": "SGD", "lr of optimizer 0": 0.1}
    saved = {"step": 4, "lr of optimizer 0, group 0": 0.1, "lr of optimizer 0, group 1": 0.01}
    assert script_settings.compare(script, saved) == script


@pytest.mark.parametrize("is_earlier", [False, True])
def test_another_optimizer_is_refused_before_its_state_is_loaded(is_earlier: bool, tmp_path: Path):
    interrupt(tmp_path)
    with pytest.raises(NotResumableError, match=r"step 3 belongs to .*, but the script creates AdamW"):
        fit(tmp_path, optimizer=torch.optim.AdamW, is_earlier=is_earlier)


def test_the_hyperparameters_of_an_earlier_release_are_compared_too(tmp_path: Path):
    interrupt(tmp_path)
    message = fit(tmp_path, optimizer=sgd(lr=0.5), is_earlier=True)
    assert "step 3: lr of optimizer 0 (checkpoint: 0.1, script: 0.5). Optimizer" in message
