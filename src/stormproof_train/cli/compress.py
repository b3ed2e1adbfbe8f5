"""Subcommand ``compress``: creates smaller and faster artifacts of a run within an error budget."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stormproof.signals.listener import termination_handler
from stormproof_train.compression.arguments import parse_arguments
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
from stormproof_train.compression.settings import Settings
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.console import format_value, print_line, print_table
from stormproof_train.errors import ExitCode, StopError, UserError
from stormproof_train.launcher import detect_launcher
from stormproof_train.lightning_output import suppress_lightning_output
from stormproof_train.pluralize import pluralize

_SHOWN_MARKS = {"best", "over budget", "dominated"}
"""Marks that are printed in the table."""
_MEANINGS = {
    "over budget": "the upper end of the interval of its degradation exceeds the budget",
    "dominated": "another artifact is nowhere worse and somewhere better on validation",
}


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
