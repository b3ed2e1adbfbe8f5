"""Describes inputs, outputs and usage of an artifact."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stormproof_train.compression.artifact import MODEL_FILE, WEIGHTS_FILE
from stormproof_train.compression.deployment.export import INPUT_NAME
from stormproof_train.compression.report.compression_info import ArtifactInfo
from stormproof_train.predict.artifact_metadata import ArtifactMetadata

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")


def escape_text(value: object) -> str:
    r"""Returns a text on one line with all special characters of Markdown and HTML escaped.

    Example:
        >>> escape_text("a|b <c>\n# *d*")
        'a\\|b \\<c\\> \\# \\*d\\*'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def inline_code(value: object) -> str:
    r"""Returns a text as inline code on one line. Pipes are escaped, because they would end a table cell.

    Example:
        >>> inline_code("model=x"), inline_code("a`b")
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


MAX_CLASSES = 50
"""Maximum number of classes to list. The file contains all of them."""

_OUTPUT_DESCRIPTIONS = {
    "probabilities": "the probability of each class, with a sum of 1 per sample",
    "scores": "a score for each class, the highest for the predicted class; scores are not probabilities",
    "values": "the predicted values, in the unit of the target",
}


def describe_interface(metadata: ArtifactMetadata) -> list[str]:
    """Returns lines that describe inputs and outputs."""
    shape = ", ".join(["N", *map(str, metadata.input_shape)])
    output_shape = f"N, {len(metadata.classes)}" if metadata.classes else "N, values"
    rows = [
        (
            inline_code(INPUT_NAME),
            f"({shape})",
            "float32",
            "any number N of samples, prepared like the training data",
        ),
        (inline_code(metadata.kind), f"({output_shape})", "float32", _OUTPUT_DESCRIPTIONS[metadata.kind]),
    ]
    lines = table(("name", "shape", "dtype", "meaning"), rows)
    if metadata.classes:
        class_list = ", ".join(inline_code(name) for name in metadata.classes[:MAX_CLASSES])
        num_remaining = len(metadata.classes) - MAX_CLASSES
        remainder = f" and {num_remaining:,} more" if num_remaining > 0 else ""
        lines += [
            "",
            f"Classes, in the order of the output: {class_list}{remainder}.",
        ]
    return lines


def describe_usage(artifact: ArtifactInfo, metadata: ArtifactMetadata) -> list[str]:
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
        f"FOLDER is the folder of this card ({inline_code(artifact.folder)} in the folder of the compression).",
        "",
        f"Its network in PyTorch{quantization_note}, in evaluation mode, from {inline_code(WEIGHTS_FILE)}:",
        "",
        "```python",
        "from stormproof_train.compression.rebuilding import load_network",
        f'network = load_network("{WEIGHTS_FILE}")',
        "```",
    ]
