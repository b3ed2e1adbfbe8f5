"""Subcommand ``train``: trains and tests one network, or the networks of a sweep.

Example:
    >>> print_help(["activation=elu"])  # doctest: +ELLIPSIS
    Trains a network, tests it once...
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from stormproof_train.cli.collection_pause import paused_collection
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.overrides import (
    add_requeue_limit,
    check_dashes,
    check_null_groups,
    check_option_lists,
    normalize_overrides,
)
from stormproof_train.config.settings import check_settings
from stormproof_train.console import print_line, print_table, result_table
from stormproof_train.errors import ExitCode
from stormproof_train.pluralize import pluralize
from stormproof_train.run.findings_file import active_findings, read_findings
from stormproof_train.run.records import RunSummary


def run(argv: Sequence[str]) -> int:
    """Trains and tests the network that the arguments describe.

    Args:
        argv: Overrides and flags of Hydra.

    Returns:
        The exit code.

    Raises:
        RunError: With the message for the user and the exit code.
    """
    return _run_hydra(_check_arguments(argv))


def print_help(argv: Sequence[str]) -> None:
    """Prints the help for the choices made in ``argv``.

    Raises:
        UserError: If an argument is invalid.
    """
    from stormproof_train.cli import help as help_of_runs  # noqa: PLC0415 (imports Hydra)

    help_of_runs.print_help(conf_dir(), _check_arguments(argv))


def _check_arguments(argv: Sequence[str]) -> list[str]:
    check_option_lists(argv, _groups())
    check_null_groups(argv, _groups())
    check_dashes(argv, _settings())
    return normalize_overrides(add_requeue_limit(argv))


def _run_hydra(argv: list[str]) -> int:
    """Runs Hydra, which composes the config and calls ``job``: once, or once per job of a sweep."""
    import hydra  # noqa: PLC0415
    from hydra.core.hydra_config import HydraConfig  # noqa: PLC0415
    from hydra.types import RunMode  # noqa: PLC0415
    from omegaconf import OmegaConf  # noqa: PLC0415 (needed only for training)

    from stormproof_train.config.hydra_defaults import VERSION_BASE  # noqa: PLC0415 (it needs Hydra)

    job_errors: list[Exception] = []

    def job(cfg: Any) -> None:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            from stormproof_train.cli.sweep import run_job  # noqa: PLC0415

            run_job(cfg)
            return
        try:
            config: Any = OmegaConf.to_container(cfg, resolve=True)
            check_settings(config)  # before torch is imported
            with paused_collection():
                from stormproof_train.cli.train import print_summary  # noqa: PLC0415 (imports torch)
                from stormproof_train.main import run  # noqa: PLC0415 (imports torch)

            if cfg.tune:
                from stormproof_train.cli.tune import tune  # noqa: PLC0415 (rarely needed)

                tune(cfg)
                return
            summary = run(cfg, show_progress=sys.stderr.isatty())
            print_summary(summary, Path(cfg.runs_dir) / summary["name"])
        except Exception as error:  # noqa: BLE001 (raised again below, because Hydra would print its own message)
            job_errors.append(error)

    _check_config_folders(argv)
    if {"-m", "--multirun"} & set(argv):
        from stormproof_train.cli.sweep import check_sweep  # noqa: PLC0415 (after cli.main checked the packages: it needs Hydra)

        check_sweep(argv)
    # Hydra 1.4 instantiates its callbacks without a whitelist, and warns about ours
    warnings.filterwarnings("ignore", r"hydra\.utils\.instantiate\(\) resolved _target_='stormproof_train\.")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing, and main() reports the error
    sys.argv = [sys.argv[0], *argv]
    hydra.main(config_path=str(conf_dir()), config_name="config", **VERSION_BASE)(job)()
    if job_errors:
        raise job_errors[0]
    return ExitCode.FINISHED


def _check_config_folders(argv: list[str]) -> None:
    """Rejects config folders with YAML files whose aliases expand to too many values."""
    from stormproof_train.mapping_file import check_alias_expansion  # noqa: PLC0415 (after cli.main checked the packages: it needs yaml)

    for argument, next_argument in pairwise([*argv, ""]):
        option, _, value = argument.partition("=")
        if option in {"--config-dir", "-cd"}:
            folder = Path(value or next_argument)
            for files in (folder.glob("*.yaml"), *((folder / group).rglob("*.yaml") for group in _groups())):
                for file in files:
                    check_alias_expansion(file)


def _groups() -> set[str]:
    return {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}


def _settings() -> set[str]:
    """Returns the groups and the settings that belong to no group."""
    import yaml  # noqa: PLC0415 (after cli.main checked the packages)

    return _groups() | yaml.safe_load((conf_dir() / "config.yaml").read_bytes()).keys()


def print_summary(summary: RunSummary, folder: Path) -> None:
    """Prints metrics, warnings and output paths of a finished run."""
    test = summary["test"]
    print_table(str(summary["name"]), *result_table(summary))
    for conclusion in summary.get("conclusions", []):
        print_line(conclusion)
    parameters_text, steps_text = pluralize(summary["parameters"], "parameter"), pluralize(summary["steps"], "step")
    print_line(f"{parameters_text}, {steps_text}, {summary['seconds']:.1f} s")
    for split in ("validation", "test"):
        non_finite = [name for name, value in summary[split].items() if not math.isfinite(value)]
        if non_finite:
            print_line(
                f"warning: {split} {', '.join(non_finite)} not finite: the run diverged; try a lower optimizer.lr"
            )
    if not test:
        print_line(f"the test split was not read. To evaluate it: stormproof-train evaluate checkpoint={folder}")
    titles = list(dict.fromkeys(finding.title for finding in active_findings(read_findings(folder / "findings.jsonl"))))
    if titles:
        print_line(f"warning: TrainingHealth reported {', '.join(titles)}. See findings.jsonl in the run folder.")
    print_line(f"run folder: {folder}")
    if (folder / "report.html").exists():
        print_line(f"report: {folder / 'report.html'}")
