"""``--help``: every choice with a line, and the arguments of the chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from stormproof_train.cli.registry import SUBCOMMANDS
from stormproof_train.config.choices import choices_of, config_dir, shown
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.plan import SETTINGS, Plan, read_plan

USAGE = """Trains a network, tests it once, and keeps everything in runs/<name>/.

  python train.py activation=elu                      one run; the same command never trains it twice
  python train.py activation=elu activation.alpha=.5  any argument of what is chosen
  python train.py -m activation=relu,elu seed=1,2     every combination, one table
  python train.py activation=elu tune=lr              finds a learning rate, or a batch size (tune=batch_size)
  python train.py data=diabetes --help                the arguments of these choices
  python train.py report runs/<name> …                one HTML page of a run, or of several (report --help)
  python train.py evaluate checkpoint=runs/<name>     what its weights are worth (evaluate --help)
  stormproof-train --config-dir my_configs …          choices of your own beside the shipped ones

An installed package has the command stormproof-train in the place of python train.py."""

SEARCH = "search"
"""A folder of choices that are the command ``search``'s, and no run's."""


def print_help(conf: Path, words: Sequence[str]) -> None:
    """Prints the help for the choices made in ``words``."""
    extra = config_dir(words)
    folders = [conf, *([extra] if extra else [])]
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    searchpath = [f"hydra.searchpath=[file://{extra.absolute()}]"] if extra else []
    with hydra.initialize_config_dir(str(conf), **VERSION_BASE):
        cfg = hydra.compose("config", [*overrides, *searchpath])
    print(USAGE)
    print("\nCommands")
    for name, subcommand in SUBCOMMANDS.items():
        print(f"  {f'python train.py {name} --help':<36}{subcommand.summary}")
    print("\nChoices")
    groups = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}
    for group in sorted(groups - {SEARCH}):
        for name, line in choices_of(folders, group):
            print(f"  {f'{group}={name}':<36}{line}")
    _print_arguments(read_plan(cfg, complete=False), cfg)


def _print_arguments(plan: Plan, cfg: DictConfig) -> None:
    print("\nSettings")
    for name, line in SETTINGS.items():
        print(f"  {f'{name}={shown(cfg[name])}':<36}{line}")
    spec = getattr(plan.data.function, "spec", None)
    losses = [plan.loss_for(spec.task if spec else "")] if spec or "_target_" in plan.loss else []
    targets = [
        plan.data,
        *plan.augmentation.values(),
        plan.model,
        plan.activation,
        plan.initialization,
        *losses,
        plan.optimizer,
        plan.scheduler,
    ]
    for target in [*targets, *plan.callbacks.values(), plan.logger, plan.trainer]:
        arguments = target.arguments()
        print(f"\n{target.where}: {arguments.pop('_target_')}")
        for name in target.missing():
            print(f"  {target.where}.{name}=  (has to be given)")
        for name, value in arguments.items():
            print(f"  {target.where}.{name}={shown(value)}")
