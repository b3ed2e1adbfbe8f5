"""Subcommand ``compress``: creates smaller and faster artifacts of a run within an error budget."""

from __future__ import annotations

import inspect
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from stormproof.signals.listener import termination_handler
from stormproof_train.compression.artifact_builder import ArtifactBuilder
from stormproof_train.compression.budget import check_budget_is_measurable, read_budget
from stormproof_train.compression.compression_loop import CompressionLoop
from stormproof_train.compression.deployment.int8_cpu import cpu_has_vnni, describe_int8_support
from stormproof_train.compression.fine_tuning import count_steps
from stormproof_train.compression.folder import CompressionFolder
from stormproof_train.compression.original import load_original
from stormproof_train.compression.records import CompressionNumbers
from stormproof_train.compression.report.compression_info import ArtifactInfo, CompressionInfo, read_compression
from stormproof_train.compression.report.marks import mark_of
from stormproof_train.compression.report.quantities import format_count, format_milliseconds, format_ratio
from stormproof_train.compression.report.verdict import sentences
from stormproof_train.compression.results import CompressionResult
from stormproof_train.compression.settings import Settings, TargetName
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.settings import CONFIG_KEYS, LENGTH_KEYS
from stormproof_train.config.signature_binding import bind
from stormproof_train.console import format_value, print_line, print_table
from stormproof_train.errors import ExitCode, StopError, UserError, rank_by_similarity
from stormproof_train.launcher import detect_launcher
from stormproof_train.lightning_output import suppress_lightning_output
from stormproof_train.pluralize import pluralize

_SETTINGS_PATH = f"{Settings.__module__}.{Settings.__name__}"
_SETTING_NAMES = tuple(inspect.signature(Settings).parameters)
_SHOWN_MARKS = {"best", "over budget", "dominated"}
"""Marks that are printed in the table."""
_MEANINGS = {
    "over budget": "the upper end of the interval of its degradation exceeds the budget",
    "dominated": "another artifact is nowhere worse and somewhere better on validation",
}


@dataclass(frozen=True)
class Arguments:
    """Parsed arguments of the ``compress`` command."""

    settings: Settings
    run_overrides: Sequence[str]


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Parses the arguments after ``compress``.

    Args:
        arguments: Settings (``run=runs/mine``, ``budget=1pp``) and overrides of the fine-tuning runs
            (``optimizer.lr=…``).

    Raises:
        UserError: If an argument is invalid, or ``run`` is missing.
    """
    settings_config, run_overrides = OmegaConf.create(), []
    for argument in arguments:
        key, sign, _ = argument.partition("=")
        group = key.lstrip("+").partition(".")[0]
        if not sign:
            raise UserError(
                f"{argument} is not a setting: write {'=…, '.join(_SETTING_NAMES[:4])}=… (--help lists all)"
            )
        if group in _SETTING_NAMES:
            override = OverridesParser.create().parse_override(argument)
            if override.is_sweep_override() or override.is_delete():
                raise UserError(f"{argument} must be a single value, or a list: {key}=[…]")
            OmegaConf.update(settings_config, key.lstrip("+"), override.value(), force_add=True)
        elif key.lstrip("+") in LENGTH_KEYS:
            raise UserError(f"{argument}: set the length of fine-tuning relative to the run, such as training=0.5")
        elif group in CONFIG_KEYS:
            run_overrides.append(argument)
        else:
            suggestion = rank_by_similarity(group, [*_SETTING_NAMES, *CONFIG_KEYS])[0]
            raise UserError(f"{key} is not a setting of compress; did you mean {suggestion}?")
    return Arguments(_build_settings(OmegaConf.to_container(settings_config)), run_overrides)


def _build_settings(values: Any) -> Settings:
    if not values.get("run"):
        raise UserError("compress needs run=…: the folder of a run, or a checkpoint of a run")
    if isinstance(values.get("methods"), str):
        values["methods"] = [values["methods"]]
    for key in values.get("target") or {}:
        if key not in get_args(TargetName):
            raise UserError(
                f"target.{key} is unknown; did you mean target.{rank_by_similarity(key, get_args(TargetName))[0]}?"
            )
    return bind({"_target_": _SETTINGS_PATH, **values}, "compress").build()


class _SignalReceived(BaseException):
    """Derives from BaseException, so that export, quantization and measurement do not treat it as their own failure."""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Ends the block with a StopError on SIGTERM and similar signals. Existing artifacts are kept.

    Raises:
        StopError: At the end of the block, if a signal was received.
    """

    def stop(signum: int, _: object) -> None:
        raise _SignalReceived(signal.Signals(signum).name)

    try:
        with termination_handler(stop):
            yield
    except _SignalReceived as error:
        raise StopError(f"stopped by {error}; the same command resumes the compression", ExitCode.START_AGAIN) from None


def _warn_if_int8_is_slow(settings: Settings) -> None:
    has_vnni = cpu_has_vnni()
    if settings.allows("int8") and not has_vnni:
        print_line(f"this processor: {describe_int8_support(has_vnni)}; set methods= without int8 to skip it")


def run(argv: Sequence[str]) -> int:
    """Compresses the network of a run and prints a summary.

    Args:
        argv: Arguments after ``compress``.

    Returns:
        Exit code.

    Raises:
        RunError: With the message for the user.
    """
    if math.prod(detect_launcher().values()) > 1:
        raise UserError("compress starts the ranks of its fine-tuning runs. Run it without torchrun or srun.")
    args = parse_arguments(argv)
    settings = args.settings
    suppress_lightning_output()
    original = load_original(Path(settings.run), conf_dir(), args.run_overrides)
    folder = CompressionFolder(settings, original)
    with folder.acquire(), stop_on_signals():
        print_line(f"compression {folder.path} of {original.trained_weights.checkpoint}")
        _warn_if_int8_is_slow(settings)
        artifact_builder = ArtifactBuilder(original, folder.artifacts_dir, settings)
        original_artifact = artifact_builder.build(artifact_builder.original_candidate)
        budget = read_budget(settings.budget, original.headline, original_artifact.value.value)
        if original.spec.num_classes:
            check_budget_is_measurable(budget, len(artifact_builder.validation))
        if settings.allows("prune") or settings.allows("factor"):
            steps = count_steps(original, settings.training)
            print_line(
                f"each smaller network is fine-tuned for {pluralize(steps, 'step')} (the run: {original.steps:,})"
            )
        compression_loop = CompressionLoop(original, settings, folder, artifact_builder, budget)
        compression_loop.run()
        result = CompressionResult(original, settings, folder, artifact_builder, budget, compression_loop)
        numbers = result.write()
    print_summary(numbers)
    print_line(f"report: {folder.path / 'report.html'}")
    if numbers["best"] is None:
        raise UserError(f"no artifact fits the budget. All artifacts are in {folder.artifacts_dir}.")
    return ExitCode.FINISHED


def print_summary(numbers: CompressionNumbers) -> None:
    """Prints the table of artifacts and the sentences at the top of the report."""
    compression = read_compression(numbers)
    metric = compression.metric
    is_tested = any(artifact.test is not None for artifact in compression.compressed_artifacts)
    head = (
        "artifact", f"{'test' if is_tested else 'validation'}\n{metric.name}",
        f"{metric.degradation_title} \non validation, 95%", "size", "MACs",
        *(f"ms for\n{batch_size}" for batch_size in compression.batch_sizes),
        *(f"faster\nfor {batch_size}" for batch_size in compression.batch_sizes[:1]), "",
    )  # fmt: skip
    rows = [_row(artifact, compression, is_tested=is_tested) for artifact in compression.artifacts]
    print_table(f"{numbers['name']}: artifacts of {numbers['run']}", head, rows)
    marks = {row[-1] for row in rows}
    for mark, meaning in _MEANINGS.items():
        if mark in marks:
            print_line(f"{mark}: {meaning}")
    for sentence in sentences(numbers, compression):
        print_line(sentence)
    for sentence in numbers["skipped"]:
        print_line(f"note: {sentence}")


def _row(artifact: ArtifactInfo, compression: CompressionInfo, *, is_tested: bool) -> list[str]:
    value, mark = artifact.test if is_tested else artifact.validation, mark_of(artifact, compression)
    return [
        artifact.name, "" if value is None else format_value(value.value),
        compression.metric.format_degradation_interval(artifact.degradation),
        format_count(artifact.bytes, "B"), format_count(artifact.macs),
        *(format_milliseconds(artifact.median_latency(batch_size)) for batch_size in compression.batch_sizes),
        format_ratio(compression.gain(artifact, "speedup")), mark if mark in _SHOWN_MARKS else "",
    ]  # fmt: skip
