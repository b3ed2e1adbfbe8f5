"""The subcommands of ``stormproof-train``.

Imports neither torch nor Hydra: ``predict`` runs without them, and ``--help`` starts quickly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TRAIN: Mapping[str, Sequence[str]] = {
    "train": (
        "hydra", "omegaconf", "torchmetrics", "sklearn", "wandb", "typeguard", "psutil", "filelock", "xxhash", "rich",
        "tqdm", "yaml", "jinja2", "pandas", "platformdirs", "vl_convert",
    )
}  # fmt: skip
"""Packages of the extra ``train`` by import name, without packages that only one option needs."""


@dataclass(frozen=True, kw_only=True)
class Subcommand:
    """A subcommand: its implementation and its requirements.

    Attributes:
        module: Module with ``run(argv)``, which gets the arguments after the subcommand and returns the exit code, and
            ``print_help(argv)``. Imported when the subcommand runs.
        summary: One line for ``--help``.
        packages: Packages that must be installed, by import name, for each extra that installs them.
        help_module: Module with ``print_help(argv)``, if ``module`` imports too much to print help.
        takes_settings: True if the arguments are settings, ``key=value``. A warning then names each overridden setting.
    """

    module: str
    summary: str
    packages: Mapping[str, Sequence[str]]
    help_module: str | None = None
    takes_settings: bool = True


DEFAULT = "train"
"""The subcommand that runs if the first word is a setting or a flag."""

SUBCOMMANDS = {
    "train": Subcommand(
        module="stormproof_train.cli.train",
        summary="trains and tests a network (the default command); with -m, several networks",
        packages=TRAIN,
    ),
    "report": Subcommand(
        module="stormproof_train.cli.report",
        summary="writes an HTML page about one run or several runs",
        packages=TRAIN,
        takes_settings=False,
    ),
    "search": Subcommand(
        module="stormproof_train.cli.search",
        summary="searches for the best settings, with any number of workers",
        packages={**TRAIN, "search": ("optuna",)},
        help_module="stormproof_train.cli.search_help",
    ),
    "compress": Subcommand(
        module="stormproof_train.cli.compress",
        summary="makes the network of a run smaller and faster, within a budget for its metric",
        packages={**TRAIN, "compress": ("torch_pruning", "onnx", "onnxruntime", "onnxscript")},
        help_module="stormproof_train.cli.compress_help",
    ),
    "evaluate": Subcommand(
        module="stormproof_train.cli.evaluate",
        summary="evaluates the weights of a run, and compares them with those of another run",
        packages=TRAIN,
    ),
    "predict": Subcommand(
        module="stormproof_train.cli.predict",
        summary="predicts with an artifact of compress, without torch",
        packages={"compress": ("onnxruntime", "numpy", "pandas", "PIL", "rich")},
        help_module="stormproof_train.cli.predict_help",
    ),
}
"""All subcommands by name. The command line, ``--help`` and error messages read this table."""
