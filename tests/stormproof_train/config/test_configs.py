"""Every YAML that ships: composed, bound to the signature of what it names, built."""

import functools
import inspect
from pathlib import Path
from typing import Any

import hydra
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import nn

from stormproof_train.activations import activation_factory
from stormproof_train.cli.search import check_space
from stormproof_train.config.callback_arguments import CALLBACK_ARGUMENTS
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.plan import Plan, read_plan
from stormproof_train.config.signature_binding import bind
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from stormproof_train.search.arguments import Composer, parse_arguments
from stormproof_train.search.settings import Settings
from tests.support.cases import slow_except
from tests.support.forked_command import ROOT
from tests.support.hydra_configs import REPRESENTATIVES, list_choices

CHOICES = sorted(path.relative_to(ROOT / "conf").with_suffix("") for path in (ROOT / "conf").glob("*/**/*.yaml"))
ARGUMENTS = {  # what a choice cannot do without
    "data/csv": ["++data.path=table.csv", "++data.target=y"],
    "data/image_folder": ["++data.path=images"],
    "initialization/checkpoint": ["++initialization.path=weights.ckpt"],
    "experiment/images": ["++data.path=images"],
}
SEARCHES = [choice for choice in CHOICES if choice.parts[0] == "search"]
RUNS = [choice for choice in CHOICES if choice not in SEARCHES]
PARTS = [choice for choice in RUNS if choice.parts[0] not in {"experiment", "data_optimizer"}]


TOGETHER = [("activation", "loss"), ("optimizer", "scheduler", "augmentation", "callbacks", "logger", "trainer")]
"""Groups whose n-th choices are composed in one config: composing takes most of the time."""


@functools.cache
def compose(*overrides: str) -> Plan:
    with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        return read_plan(hydra.compose("config", list(overrides)))


def test_the_choices_are_those_of_the_checkout():
    assert conf_dir() == ROOT / "conf"
    assert len(CHOICES) >= 30
    assert Path("experiment/broken/dying_relu") in CHOICES


def test_every_choice_is_described_and_repeats_no_default():
    for choice in CHOICES:
        _assert_first_line_describes(choice)
        if choice in [*PARTS, *SEARCHES]:
            _assert_repeats_no_default(choice)


SETTINGS_OF_DIABETES: dict[str, tuple[list[str], float]] = {
    "a data set changes an optimizer": (["data=diabetes"], 5.0),
    "of other data nothing changes": (["data=digits"], 0.01),
    "of another optimizer nothing changes": (["data=diabetes", "optimizer=sgd"], 0),
    "the command line wins": (["data=diabetes", "++optimizer.weight_decay=0.1"], 0.1),
    "another model changes nothing of it": (["data=diabetes", "++model._target_=torch.nn.Identity"], 5.0),
}


@pytest.mark.parametrize("case", SETTINGS_OF_DIABETES)
def test_settings_of_a_data_set_are_for_the_optimizer_that_they_were_measured_with(case: str):
    overrides, weight_decay = SETTINGS_OF_DIABETES[case]
    assert compose(*overrides).optimizer.arguments()["weight_decay"] == weight_decay


DEFAULT = {"activation": REPRESENTATIVES, "loss": ("cross_entropy", "focal", "mae"), "experiment": ("table", "images")}
"""Of these groups, all other choices are slow."""


@pytest.mark.parametrize(
    "choice",
    slow_except(CHOICES, [c for c in CHOICES if c.name in DEFAULT.get(c.parts[0], (c.name,))]),
    ids=str,
)
def test_a_choice_composes_fits_its_signature_and_is_built(
    choice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if choice in SEARCHES:
        _assert_can_be_searched(choice)
        return
    plan = compose(*_companions(choice), *ARGUMENTS.get(str(choice), []))
    _assert_fits_its_signature(plan)
    if choice in PARTS:
        monkeypatch.chdir(_file_arguments(tmp_path))
        assert _is_built(plan, choice, tmp_path)


def _companions(choice: Path) -> list[str]:
    """Returns the overrides for a choice and for the choices that are composed with it."""
    group, *name = choice.parts
    groups = next((some for some in TOGETHER if group in some), ())
    if len(name) > 1 or not groups:
        return [f"{group}={'/'.join(name)}"]
    overrides = {together: list_choices(together) for together in groups}
    index = overrides[group].index(name[0])
    return [f"{together}={overrides[together][index % len(overrides[together])]}" for together in groups]


def _assert_first_line_describes(choice: Path) -> None:
    first, *rest = (ROOT / "conf" / f"{choice}.yaml").read_text().splitlines()
    line = rest[0] if first.startswith("# @package") else first
    assert line.startswith("# ")
    assert 10 < len(line) < 120


def _assert_fits_its_signature(plan: Plan) -> None:
    spec = getattr(plan.data.function, "spec", None)
    settings = plan.settings(plan.bind_loss(spec.task if spec else "regression"))
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings


def _assert_can_be_searched(choice: Path) -> None:
    arguments = parse_arguments([f"search={choice.name}", "model.dropout=0.1,0.2"], conf_dir())
    assert isinstance(arguments.settings, Settings)
    check_space(arguments, Composer(conf_dir()))


def _assert_repeats_no_default(choice: Path) -> None:
    entry = yaml.safe_load((ROOT / "conf" / f"{choice}.yaml").read_text())
    entries = (
        [entry]
        if "_target_" in entry
        else [_complete_part(key, part) for key, part in entry.items() if isinstance(part, dict)]
    )
    where = choice.parent.name
    tensors = {"activation": 1, "loss": 2}.get(where, 0)
    for part in entries:
        function = bind(part, where, frozenset(_offered_arguments(part, where)), tensors).function
        arguments = {name: value for name, value in part.items() if name != "_target_"}
        parameters = inspect.signature(function).parameters if arguments else {}  # some builtins have no signature
        assert not [name for name, value in arguments.items() if parameters[name].default == value]


def _complete_part(key: str, part: dict[str, Any]) -> dict[str, Any]:
    """A part that only adds to that of the default choice says its target there."""
    default = yaml.safe_load((ROOT / "conf" / "callbacks" / "default.yaml").read_text())
    return part if "_target_" in part else {"_target_": default[key]["_target_"], **part}


def _offered_arguments(part: dict[str, Any], where: str) -> list[str]:
    groups = {
        "optimizer": ["params"],
        "data": ["path", "target"],
        "model": ["input_shape", "num_outputs", "activation"],
        "initialization": ["network", "activation", "input_shape", "inputs", "path"],
        "logger": ["folder"],
        "augmentation": ["input_shape", "num_classes"],
        "callbacks": [*CALLBACK_ARGUMENTS],
    }
    lengths = ["optimizer", "total_steps", "T_max", "max_lr"]
    return [*groups.get(where, []), *lengths, "settings", "name"]


def _is_built(plan: Plan, choice: Path, tmp_path: Path) -> bool:
    builders = {
        "activation": lambda: isinstance(activation_factory(plan.activation.factory())(), nn.Module),
        "initialization": lambda: _initialization_changes(plan) is (choice.name != "torch"),
        "augmentation": lambda: _augmentation_keeps_the_shape(plan),
        "loss": lambda: callable(plan.bind_loss("").build(class_counts=(3, 4)).best_constant),
        "model": lambda: _model(plan)(torch.zeros(2, 1, 8, 8)).shape == (2, 10),
        "data": lambda: isinstance(plan.data.build(seed=0).spec, DataSpec),
        "optimizer": lambda: isinstance(_optimizer(plan), torch.optim.Optimizer),
        "scheduler": lambda: _scheduler_is_one(plan, choice.name),
        "callbacks": lambda: all(
            isinstance(target.build(dirpath=tmp_path, datamodule=None), Callback) for target in plan.callbacks.values()
        ),
        "logger": lambda: _logger_logs(plan, choice.name, tmp_path),
        "trainer": lambda: _trainer_is_one(plan, choice.name),
    }
    return builders[choice.parent.name]()


def _file_arguments(folder: Path) -> Path:
    """A table and a folder of images, for the data that is the user's own."""
    folder.joinpath("table.csv").write_text("x,y\n" + "".join(f"{row},{row / 7}\n" for row in range(30)))
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (9, 8)).save(folder / "images" / name / f"{number}.png")
    return folder


def _model(plan: Plan) -> nn.Module:
    activation = activation_factory(plan.activation.factory())
    return plan.model.build(input_shape=(1, 8, 8), num_outputs=10, num_classes=10, activation=activation)


def _augmentation_keeps_the_shape(plan: Plan) -> bool:
    shape = (1, 8) if "signal" in plan.augmentation else (1, 8, 8)
    parts = [part.build(input_shape=shape, num_classes=10) for part in plan.augmentation.values()]
    return all(part(torch.zeros(4, *shape), torch.arange(4))[0].shape == (4, *shape) for part in parts)


def _initialization_changes(plan: Plan) -> bool:
    torch.save(_model(plan).state_dict(), "weights.ckpt")
    network = _model(plan)
    before = [parameter.clone() for parameter in network.parameters()]
    activation = activation_factory(plan.activation.factory())
    inputs = torch.randn(8, 1, 8, 8)
    plan.initialization.build(network=network, activation=activation, input_shape=(1, 8, 8), inputs=inputs)
    return all(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def _optimizer(plan: Plan) -> torch.optim.Optimizer:
    return plan.optimizer.build(params=[nn.Parameter(torch.zeros(1))])


def _scheduler_is_one(plan: Plan, name: str) -> bool:
    scheduler = plan.scheduler.build(optimizer=_optimizer(plan), total_steps=50, T_max=50, max_lr=0.1)
    return scheduler is None if name == "none" else hasattr(scheduler, "step")


def _logger_logs(plan: Plan, name: str, folder: Path) -> bool:
    if name == "wandb":  # a real run of it is in test_loggers.py and test_runs.py
        return "project" in plan.logger.arguments()
    logger = plan.logger.build(folder=folder, settings={}, name="run")
    if name == "none":
        return logger is None
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.finalize("success")
    return bool(list(folder.rglob("events.out.tfevents*")))


def _trainer_is_one(plan: Plan, name: str) -> bool:
    if name == "gpu" and not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"^trainer: .*gpu"):
            plan.trainer.build(logger=False)
        return True
    trainer = plan.trainer.build(logger=False, callbacks=[], enable_checkpointing=False)
    return isinstance(trainer, pl.Trainer)
