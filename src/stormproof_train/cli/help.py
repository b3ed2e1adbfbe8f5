"""Prints the help of the subcommand ``train``: all choices, and the arguments of the selected ones.

Arguments and their defaults are read from signatures, for which torch and Lightning are imported. Without a selection,
the help lists choices and settings, which need neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from stormproof_train.cli.collection_pause import paused_collection
from stormproof_train.cli.registry import SUBCOMMANDS
from stormproof_train.config.choices import find_config_dir, format_override, list_options
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.settings import SETTING_HELP

USAGE = """Trains a network, tests it once, and saves everything in runs/<name>/.

  python train.py activation=elu                      one run; the same command never trains it twice
  python train.py activation=elu activation.alpha=.5  any argument of a choice
  python train.py -m activation=relu,elu seed=1,2     every combination, one table
  python train.py activation=elu tune=lr              finds a learning rate, or a batch size (tune=batch_size)
  python train.py data=diabetes --help                the arguments of these choices
  python train.py report runs/<name> …                one HTML page about one run or several (report --help)
  python train.py evaluate checkpoint=runs/<name>     evaluates its weights (evaluate --help)
  stormproof-train --config-dir my_configs …          adds your own choices

An installed package has the command stormproof-train instead of python train.py."""

SEARCH_GROUP = "search"
"""Folder of choices for the subcommand ``search``, which runs do not have."""


def print_help(conf: Path, argv: Sequence[str]) -> None:
    """Prints all choices and settings, and the arguments of the choices if ``argv`` makes any."""
    extra_dir = find_config_dir(argv)
    folders = [conf, *([extra_dir] if extra_dir else [])]
    overrides = [arg for arg in argv if "=" in arg and not arg.startswith("-")]
    searchpath = [f"hydra.searchpath=[file://{extra_dir.absolute()}]"] if extra_dir else []
    with hydra.initialize_config_dir(str(conf), **VERSION_BASE):
        cfg = hydra.compose("config", [*overrides, *searchpath])
    print(USAGE)
    print("\nCommands")
    for name, subcommand in SUBCOMMANDS.items():
        print(f"  {f'python train.py {name} --help':<36}{subcommand.summary}")
    print("\nChoices")
    groups = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}
    for group in sorted(groups - {SEARCH_GROUP}):
        for name, description in list_options(folders, group):
            print(f"  {f'{group}={name}':<36}{description}")
    print("\nSettings")
    for name, description in SETTING_HELP.items():
        print(f"  {f'{name}={format_override(cfg[name])}':<36}{description}")
    if overrides:
        _print_arguments(cfg)
    else:
        print("\nAdd a choice to list its arguments: python train.py optimizer=adamw --help")


def _print_arguments(cfg: DictConfig) -> None:
    with paused_collection():
        from stormproof_train.config.plan import read_plan  # noqa: PLC0415 (imports torch and Lightning)

    plan = read_plan(cfg, complete=False)
    spec = getattr(plan.data.function, "spec", None)
    losses = [plan.bind_loss(spec.task if spec else "")] if spec or "_target_" in plan.loss else []
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
        print(f"\n{target.config_key}: {arguments.pop('_target_')}")
        for name in target.missing_arguments():
            print(f"  {target.config_key}.{name}=  (required)")
        for name, value in arguments.items():
            print(f"  {target.config_key}.{name}={format_override(value)}")
