"""The result of a diagnosis: a problem, its place, the evidence and the advice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, TypedDict

from stormproof.finding_sentences import describe_evidence
from stormproof.problem import Problem

__all__ = ["Finding", "FindingRecord", "Problem", "Severity"]

FORMAT_VERSION = 1
"""Version of :class:`FindingRecord`."""


class Severity(StrEnum):
    """Severity of a finding.

    ``info`` may be intended, ``warning`` is most likely a mistake, and ``critical`` makes the run useless.

    Example:
        >>> print(Severity.WARNING)
        warning
    """

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class FindingRecord(TypedDict):
    """A :class:`Finding` in JSON files and checkpoints.

    Attributes:
        version: Version of this format. Later versions may add fields, which readers ignore.
        evidence: Measurements. NaN and infinities are the strings ``NaN``, ``Infinity`` and ``-Infinity``.
    """

    version: int
    problem: str
    severity: str
    where: str
    since_step: int
    step: int
    evidence: dict[str, float | str]
    advice: str
    consequences: list[str]
    likely_cause: str
    text: str
    documentation: str


@dataclass(frozen=True)
class Finding:
    """A problem of a run, with its evidence and advice.

    Attributes:
        problem: A :class:`Problem`, or the name of a custom problem in snake case.
        severity: Severity of the problem.
        where: Layer, tensor or parameter group. Empty if the problem concerns the whole run.
        since_step: Number of optimizer steps before the problem began, as far as known.
        step: Number of optimizer steps before the first report. TrainingHealth sets it if a rule does not.
        evidence: Measurements by name: numbers and strings.
        advice: One or more sentences in plain PyTorch terms. The first starts with a verb.
        consequences: Other findings that this one explains.
        likely_cause: Most likely cause, as a clause without a period. Empty if unknown.
        text: Sentence about the evidence, starting in lower case. If empty, the template of the problem is used or, for
            a custom problem, the evidence is listed.
        documentation: URL of a page about the problem. If empty, the page of the :class:`Problem`.

    Raises:
        ValueError: If the problem is not in snake case, or the severity is unknown.
        TypeError: If a value has a wrong type.

    Example:
        >>> evidence = {"dead": 24.0, "units": 32.0, "from_the_start": 0.0}
        >>> print(Finding(Problem.DEAD_UNITS, Severity.WARNING, "net.1", 7, 20, evidence, "Lower lr to 0.005."))
        warning: DEAD_UNITS  net.1: 24 of 32 units are dead since step 7 (0 at initialization). Lower lr to 0.005.
    """

    problem: str
    severity: Severity
    where: str = ""
    since_step: int = 0
    step: int = 0
    evidence: Mapping[str, float | str] = field(default_factory=dict)
    advice: str = ""
    consequences: tuple[str, ...] = ()
    likely_cause: str = ""
    text: str = ""
    documentation: str = ""

    def __post_init__(self) -> None:
        for name in ("problem", "where", "advice", "likely_cause", "text", "documentation"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"`{name}` must be a string, got {getattr(self, name)!r}.")
        for name in ("since_step", "step"):
            object.__setattr__(self, name, int(getattr(self, name)))
        check_problem_name(self.problem)
        object.__setattr__(self, "problem", _PROBLEMS.get(self.problem, self.problem))
        object.__setattr__(self, "severity", Severity(str(self.severity).lower()))
        evidence = {str(name): _to_plain_value(name, value) for name, value in self.evidence.items()}
        object.__setattr__(self, "evidence", evidence)

    def __str__(self) -> str:
        cause = f"Likely cause: {self.likely_cause}." if self.likely_cause else ""
        place = f"{self.where}: " if self._has_informative_place else ""
        text = " ".join(filter(None, [f"{place}{self.description}", cause, self.advice]))
        return f"{self.severity}: {self.code}  {text if place else text[:1].upper() + text[1:]}"

    @property
    def code(self) -> str:
        """Code of the problem, such as ``DEAD_UNITS``."""
        return self.problem.upper()

    @property
    def url(self) -> str:
        """URL of a page about the problem. Empty for a custom problem without a page."""
        if self.documentation.startswith(("https://", "http://")):
            return self.documentation
        return self.problem.url if isinstance(self.problem, Problem) else ""

    @property
    def description(self) -> str:
        """A sentence about the evidence. It starts in lower case."""
        return self.text or describe_evidence(self.problem, self.since_step, self.evidence)

    @property
    def title(self) -> str:
        """Code and place of the problem."""
        return f"{self.code} in {self.where}" if self._has_informative_place else self.code

    @property
    def _has_informative_place(self) -> bool:
        """Returns whether the place adds to the problem, unlike "target" for degenerate targets."""
        words = {word.removesuffix("s") for word in self.problem.split("_")}
        return bool(self.where) and not (isinstance(self.problem, Problem) and self.where in words)

    def as_dict(self) -> FindingRecord:
        """Returns the fields as JSON-serializable values."""
        return {
            "version": FORMAT_VERSION,
            "problem": str(self.problem),
            "severity": str(self.severity),
            "where": self.where,
            "since_step": self.since_step,
            "step": self.step,
            "evidence": {name: _to_json_value(value) for name, value in self.evidence.items()},
            "advice": self.advice,
            "consequences": list(self.consequences),
            "likely_cause": self.likely_cause,
            "text": self.text,
            "documentation": self.documentation,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """Returns the finding whose :meth:`as_dict` returned ``values``. Ignores fields of later versions."""
        evidence = {
            name: float(value) if value in _NON_FINITE.values() else value for name, value in values["evidence"].items()
        }
        return cls(
            **{
                **{field.name: values[field.name] for field in fields(cls) if field.name in values},
                "evidence": evidence,
                "consequences": tuple(values["consequences"]),
            }
        )


def check_problem_name(name: object) -> None:
    """Raises ValueError unless ``name`` is a string in snake case."""
    if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"`problem` must be a name in snake case, such as 'huge_first_loss', got {name!r}.")


def _to_plain_value(name: object, value: Any) -> float | str:
    """Returns a string, an integer or a float. Converts scalars of NumPy and torch."""
    if type(value) in {str, int, float}:
        return value
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"`evidence[{name!r}]` must be a number or a string, got {type(value).__name__}.") from error


def _to_json_value(value: float | str) -> float | str:
    """Returns the name of NaN or an infinity, which JSON lacks, and other values unchanged."""
    return _NON_FINITE.get(str(value), value) if isinstance(value, float) else value


_NON_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_PROBLEMS = {str(problem): problem for problem in Problem}
