"""Metadata of an artifact, which make it usable without its run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

OutputKind = Literal["probabilities", "scores", "values"]

METADATA_KEY = "stormproof"
"""Key in the metadata of an ONNX file whose value is JSON."""


@dataclass(frozen=True)
class ArtifactMetadata:
    """Metadata of an artifact as plain values.

    Attributes:
        kind: Kind of its predictions, which is also the name of its output.
        classes: Names of the classes in the order of the outputs. Empty for values.
        input_shape: Shape of one sample.
        run: Name of the run that trained the network.
        target: Name of the target. None without a name.
        preparation: Conversion of a file to inputs, from the data module. None if the data module has none.

    Example:
        >>> metadata = ArtifactMetadata("values", [], [10], "small_mouse", "price")
        >>> ArtifactMetadata.from_json(metadata.to_json()) == metadata
        True
    """

    kind: OutputKind
    classes: list[str]
    input_shape: list[int]
    run: str
    target: str | None = None
    preparation: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """Returns the metadata as JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ArtifactMetadata:
        """Returns the metadata from the result of :meth:`to_json`.

        Raises:
            ValueError: If the text is not such a result.
        """
        try:
            metadata = cls(**json.loads(text))
        except TypeError as error:
            raise ValueError("the metadata was not written by this application") from error
        if metadata.kind not in get_args(OutputKind):
            raise ValueError(f"unknown kind of predictions {metadata.kind}")
        return cast("ArtifactMetadata", metadata)
