"""Writes the model card of an artifact, for users without access to the run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from stormproof_train.compression.artifact import MODEL_FILE, WEIGHTS_FILE
from stormproof_train.compression.deployment.export import INPUT_NAME
from stormproof_train.compression.records import ArtifactNumbers, ClassDegradation, CompressionNumbers
from stormproof_train.compression.report.compression_info import (
    ORIGINAL,
    ArtifactInfo,
    CompressionInfo,
    read_artifact,
    read_compression,
)
from stormproof_train.compression.report.metric import Metric
from stormproof_train.compression.report.quantities import format_count, format_milliseconds, format_ratio
from stormproof_train.console import format_value
from stormproof_train.predict.artifact_metadata import ArtifactMetadata
from stormproof_train.report.kit.json_numbers import finite_or_none

MAX_WORST_CLASSES = 5


def model_card(numbers: CompressionNumbers, artifact: ArtifactNumbers, metadata: ArtifactMetadata) -> str:
    """Returns the model card of an artifact in Markdown.

    Args:
        numbers: Content of ``answer.json``.
        artifact: Entry of ``numbers["artifacts"]``.
        metadata: Metadata in the artifact.
    """
    compression, artifact_info = read_compression(numbers), read_artifact(artifact)
    lines = [
        f"# {_escape_text(metadata.run)}: {_escape_text(artifact_info.name)}", "",
        *_overview(numbers, artifact_info, metadata), "", "## Results", "",
        *_results_table(compression, artifact_info), "",
        *_comparison(numbers, compression, artifact_info),
        "", "## Inputs and outputs", "", *_describe_interface(metadata),
        "", "## How to run it", "", *_describe_usage(artifact_info, metadata),
        "", "## Data", "", *_data_section(numbers, metadata),
        "", "## Limits", "", *_limits_section(numbers, artifact_info, artifact["degradation_by_class"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _overview(numbers: CompressionNumbers, artifact: ArtifactInfo, metadata: ArtifactMetadata) -> list[str]:
    purpose = f"distinguishes {len(metadata.classes):,} classes" if metadata.classes else "predicts numbers"
    sizes = (
        format_count(artifact.bytes, "B"),
        f"{format_count(artifact.parameters)} parameters" * (artifact.parameters is not None),
        f"{format_count(artifact.macs)} multiply-accumulates per sample" * (artifact.macs is not None),
    )
    origin = numbers["made_with"]
    target = f" ({_escape_text(metadata.target)})" if metadata.target is not None else ""
    task = _escape_text(numbers["task"])
    return [
        f"A network for {task}, as an ONNX file ({_inline_code(MODEL_FILE)}): it {purpose}{target}.",
        "",
        f"- From the run {_inline_code(numbers['run'])}, checkpoint {_inline_code(numbers['checkpoint'])}",
        f"- Method: {_escape_text(artifact.method)}",
        f"- Network: {', '.join(f'{group} {_inline_code(path)}' for group, path in origin['network'].items())}",
        f"- Built with {', '.join(f'{name} {release}' for name, release in origin['versions'].items())}",
        f"- Size: {', '.join(filter(None, sizes)) or 'unknown'}",
    ]


def _results_table(compression: CompressionInfo, artifact: ArtifactInfo) -> list[str]:
    metric, calibration_split = compression.metric, "validation" if artifact.test is None else "the test split"
    measures: list[tuple[str, Callable[[ArtifactInfo], str]]] = [
        (
            f"{metric.name} on the test split (95% interval)",
            lambda column_artifact: metric.format_interval(column_artifact.test),
        ),
        (
            f"{metric.name} on validation (95% interval)",
            lambda column_artifact: metric.format_interval(column_artifact.validation),
        ),
        (
            f"expected calibration error on {calibration_split}",
            lambda column_artifact: _format_optional(column_artifact.calibration_error),
        ),
        ("size of the file", lambda column_artifact: format_count(column_artifact.bytes, "B")),
        *(
            (f"ms, batch of {batch_size} (median; 95th percentile)", _latency_formatter(batch_size))
            for batch_size in compression.batch_sizes
        ),
        ("memory", lambda column_artifact: format_count(column_artifact.memory, "B")),
        ("ms to load", lambda column_artifact: format_milliseconds(column_artifact.load_seconds)),
    ]
    column_artifacts = [artifact]
    if artifact.name != ORIGINAL and compression.original is not None:
        column_artifacts.append(compression.original)
    rows = [(name, *(measure(column_artifact) for column_artifact in column_artifacts)) for name, measure in measures]
    header = ("", "this artifact", "the original")[: 1 + len(column_artifacts)]
    return table(
        [_escape_text(cell) for cell in header], [[_escape_text(cell) for cell in row] for row in rows if any(row[1:])]
    )


def _comparison(numbers: CompressionNumbers, compression: CompressionInfo, artifact: ArtifactInfo) -> list[str]:
    """Returns the degradation, the gains and the hardware of the measurements."""
    machine = numbers["machine"]
    threads = machine["threads"]
    hardware = f"{_escape_text(machine['processor'])} with {threads} thread{'s' * (threads != 1)}"
    lines = [f"Latencies were measured on {hardware}; {_escape_text(machine['int8'].rstrip('.'))}."]
    if artifact.difference is not None:
        lines.append(
            f"On real inputs, its outputs differ from those of its network in PyTorch by at most "
            f"{artifact.difference:.2g}."
        )
    return [*([] if artifact.name == ORIGINAL else _degradation_lines(compression.metric, artifact)), *lines]


def _degradation_lines(metric: Metric, artifact: ArtifactInfo) -> list[str]:
    unit = "percentage points" if metric.is_share else "in its own unit"
    cells = [
        (metric.format_degradation_interval(interval), split)
        for interval, split in ((artifact.test_degradation, "the test split"), (artifact.degradation, "validation"))
        if interval
    ]
    lines = [f"Degradation of {_escape_text(metric.name)}, with 95% intervals, {unit}:"] if cells else []
    lines += ["", *(f"- {cell} on {split}" for cell, split in cells), ""] if cells else []
    if artifact.mcnemar is not None:
        original_only, artifact_only, p_value = artifact.mcnemar
        p_text = "" if p_value is None else f" (McNemar's test: p = {p_value:.2g})"
        lines.append(
            f"Of the test samples, only the original is correct on {original_only:,}, only this artifact on "
            f"{artifact_only:,}{p_text}."
        )
    speedups = "; ".join(
        f"{format_ratio(interval.value)} in batches of {batch_size}"
        for batch_size, interval in artifact.speedup.items()
    )
    return [*lines, *([f"Speedup over the original: {speedups}."] if speedups else [])]


def _data_section(numbers: CompressionNumbers, metadata: ArtifactMetadata) -> list[str]:
    samples = numbers["samples"]
    test_note = f", {samples['test']:,} test samples" if samples["test"] else "; the test split was not used"
    lines = [f"Measured on {samples['validation']:,} validation samples{test_note}. The run documents the training."]
    if metadata.preparation is None:
        return [*lines, "The preparation of inputs is unknown: pass arrays as the training data provided them."]
    description = json.dumps(metadata.preparation, indent=1, ensure_ascii=False, default=str).replace("```", "'''")
    return [*lines, "", "Preparation of an input from a file:", "", "```json", description, "```"]


def _limits_section(
    numbers: CompressionNumbers, artifact: ArtifactInfo, degradation_by_class: Sequence[ClassDegradation]
) -> list[str]:
    samples = numbers["samples"]
    lines = [
        "- It was measured on this data only. Its quality on other data is unknown.",
        f"- It was selected on validation, so its validation results may be slightly optimistic{_budget_note(numbers)}."
        if artifact.name == numbers["best"]
        else "- It is not the recommended artifact."
        if artifact.name != ORIGINAL
        else "- It is the original in another format.",
        "- Latencies differ on other processors and with other numbers of threads.",
    ]
    if artifact.quantization == "int8":
        lines.append(
            "- It was quantized for the processor that it was measured on. Without int8 instructions it is slower, and "
            "on an x86 processor without VNNI, sums may overflow and saturate."
        )
        lines.append(
            f"- Its int8 ranges were calibrated on {samples['calibration']:,} training samples. Inputs far outside "
            "these ranges are clipped."
        )
    lines += [f"- Drawback: {_escape_text(remark)}." for remark in artifact.remarks]
    class_degradations = [
        (str(entry["name"]), degradation)
        for entry in degradation_by_class
        if (degradation := finite_or_none(entry["degradation"])) is not None and degradation > 0
    ]
    worst_classes = sorted(class_degradations, key=lambda pair: -pair[1])[:MAX_WORST_CLASSES]
    if worst_classes:
        class_list = ", ".join(f"{_escape_text(name)} ({degradation * 100:.2f})" for name, degradation in worst_classes)
        lines.append(
            f"- Classes with the largest decrease in recall on validation, in percentage points: {class_list}."
        )
    return lines


def _budget_note(numbers: CompressionNumbers) -> str:
    budget = numbers["budget"]
    return (
        f": the upper end of the interval of its degradation is within {_escape_text(budget['requested'])}"
        if budget
        else ""
    )


def _latency_formatter(batch_size: str) -> Callable[[ArtifactInfo], str]:
    def format_latency(artifact: ArtifactInfo) -> str:
        return "; ".join(filter(None, map(format_milliseconds, artifact.latency.get(batch_size, ()))))

    return format_latency


def _format_optional(value: float | None) -> str:
    return "" if value is None else format_value(value)


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")


def _escape_text(value: object) -> str:
    r"""Returns a text on one line with all special characters of Markdown and HTML escaped.

    Example:
        >>> _escape_text("a|b <c>\n# *d*")
        'a\\|b \\<c\\> \\# \\*d\\*'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def _inline_code(value: object) -> str:
    r"""Returns a text as inline code on one line. Pipes are escaped, because they would end a table cell.

    Example:
        >>> _inline_code("model=x"), _inline_code("a`b")
        ('`model=x`', '``a`b``')
    """
    line = " ".join(str(value).split())
    fence = "`" * (max((len(backticks) for backticks in re.findall("`+", line)), default=0) + 1)
    pad = " " * (line.startswith("`") or line.endswith("`") or not line)
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", "\\|")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    r"""Returns the lines of a table. Its cells must be Markdown.

    Example:
        >>> table(("", "value"), [("size", "3 kB")])
        ['|  | value |', '| --- | --- |', '| size | 3 kB |']
    """
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


_MAX_CLASSES = 50
"""Maximum number of classes to list. The file contains all of them."""

_OUTPUT_DESCRIPTIONS = {
    "probabilities": "the probability of each class, with a sum of 1 per sample",
    "scores": "a score for each class, the highest for the predicted class; scores are not probabilities",
    "values": "the predicted values, in the unit of the target",
}


def _describe_interface(metadata: ArtifactMetadata) -> list[str]:
    """Returns lines that describe inputs and outputs."""
    shape = ", ".join(["N", *map(str, metadata.input_shape)])
    output_shape = f"N, {len(metadata.classes)}" if metadata.classes else "N, values"
    rows = [
        (
            _inline_code(INPUT_NAME),
            f"({shape})",
            "float32",
            "any number N of samples, prepared like the training data",
        ),
        (_inline_code(metadata.kind), f"({output_shape})", "float32", _OUTPUT_DESCRIPTIONS[metadata.kind]),
    ]
    lines = table(("name", "shape", "dtype", "meaning"), rows)
    if metadata.classes:
        class_list = ", ".join(_inline_code(name) for name in metadata.classes[:_MAX_CLASSES])
        num_remaining = len(metadata.classes) - _MAX_CLASSES
        remainder = f" and {num_remaining:,} more" if num_remaining > 0 else ""
        lines += [
            "",
            f"Classes, in the order of the output: {class_list}{remainder}.",
        ]
    return lines


def _describe_usage(artifact: ArtifactInfo, metadata: ArtifactMetadata) -> list[str]:
    """Returns lines that describe how to run the artifact, and how to load its network in PyTorch."""
    quantization_note = " before quantization" if artifact.quantization != "none" else ""
    shape = ", ".join(["1", *map(str, metadata.input_shape)])
    return [
        "```python",
        "import numpy as np",
        "import onnxruntime",
        f'session = onnxruntime.InferenceSession("{MODEL_FILE}", providers=["CPUExecutionProvider"])',
        f"inputs = np.zeros(({shape}), dtype=np.float32)  # replace by your inputs",
        f'({metadata.kind},) = session.run(None, {{"{INPUT_NAME}": inputs}})',
        "```",
        "",
        "For files, prepared like the training data:",
        "",
        "```sh",
        "stormproof-train predict model=FOLDER input=FILE",
        "```",
        "",
        f"FOLDER is the folder of this card ({_inline_code(artifact.folder)} in the folder of the compression).",
        "",
        f"Its network in PyTorch{quantization_note}, in evaluation mode, from {_inline_code(WEIGHTS_FILE)}:",
        "",
        "```python",
        "from stormproof_train.compression.rebuilding import load_network",
        f'network = load_network("{WEIGHTS_FILE}")',
        "```",
    ]
