"""Converts Hydra's sweep grammar to Optuna's distributions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from stormproof_train.errors import UserError
from stormproof_train.search.records import ParameterRecord

MAX_COMBINATIONS = 100_000
"""Maximum number of combinations of a grid that are listed."""


@dataclass(frozen=True)
class Parameter:
    """A searched setting.

    Attributes:
        key: Key of the setting on the command line.
        distribution: Distribution of its values. Choices are stored as text in Hydra's grammar.
        only_with: Choices by key under which the setting exists. Empty if it always exists.
    """

    key: str
    distribution: BaseDistribution
    only_with: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def is_active(self, values: Mapping[str, Any]) -> bool:
        """Returns True if the setting exists for the values that were chosen before it."""
        return all(values.get(group) in choices for group, choices in self.only_with.items())

    def suggest(self, trial: optuna.Trial) -> Any:
        """Proposes a value for a trial."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return trial.suggest_categorical(self.key, choices)
            case IntDistribution(low=low, high=high, log=log, step=step):
                return trial.suggest_int(self.key, low, high, log=log, step=step)
            case FloatDistribution(low=low, high=high, log=log, step=step):
                return trial.suggest_float(self.key, low, high, log=log, step=step)
            case _:
                raise AssertionError(self.distribution)

    def values(self) -> list[Any] | None:
        """Returns all values, or None if there are too many to list."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return list(choices)
            case IntDistribution(low=low, high=high, log=False, step=step):
                return list(range(low, high + 1, step))
            case FloatDistribution(low=low, high=high, step=float(step)):
                return [low + index * step for index in range(round((high - low) / step) + 1)]
            case _:
                return None

    def as_dict(self) -> ParameterRecord:
        """Returns the fields as JSON-serializable values."""
        fields: ParameterRecord = {
            "key": self.key,
            "kind": "choice",
            "log": False,
            "choices": None,
            "low": None,
            "high": None,
            "only_with": {group: sorted(choices) for group, choices in self.only_with.items()},
        }
        if isinstance(self.distribution, CategoricalDistribution):
            return {**fields, "choices": list(self.distribution.choices)}
        assert isinstance(self.distribution, IntDistribution | FloatDistribution)
        kind = "int" if isinstance(self.distribution, IntDistribution) else "float"
        return {
            **fields,
            "kind": kind,
            "log": self.distribution.log,
            "step": self.distribution.step,
            "low": self.distribution.low,
            "high": self.distribution.high,
        }


class Space:
    """Search space. Choices of groups come first.

    Args:
        parameters: Parameters in any order. Must not be empty.

    Raises:
        UserError: If ``parameters`` is empty.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        if not parameters:
            raise UserError(
                "there is nothing to search: give a setting several values, such as activation=relu,elu or "
                "'optimizer.lr=tag(log,interval(1e-4,1e-1))'"
            )
        self.parameters = sorted(parameters, key=lambda parameter: (bool(parameter.only_with), "." in parameter.key))

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Proposes values for a trial, only for parameters that exist."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.is_active(values):
                values[parameter.key] = parameter.suggest(trial)
        return values

    def combinations(self) -> list[dict[str, Any]] | None:
        """Returns all combinations, or None if there are too many to list."""
        values_by_key = {parameter.key: parameter.values() for parameter in self.parameters}
        countable_values = {key: choices for key, choices in values_by_key.items() if choices is not None}
        if len(countable_values) < len(values_by_key):
            return None
        if math.prod(map(len, countable_values.values())) > MAX_COMBINATIONS:
            return None
        return list(self._iterate_combinations(countable_values))

    def _iterate_combinations(self, values: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
        yielded_keys = set()
        for combination in itertools.product(*(values[parameter.key] for parameter in self.parameters)):
            params: dict[str, Any] = {}
            for parameter, value in zip(self.parameters, combination, strict=True):
                if parameter.is_active(params):
                    params[parameter.key] = value
            if (key := tuple(params.items())) not in yielded_keys:
                yielded_keys.add(key)
                yield params


def format_overrides(values: Mapping[str, Any]) -> list[str]:
    """Formats values as overrides. Floats keep all digits.

    Example:
        >>> format_overrides({"activation": "elu", "optimizer.lr": 0.012})
        ['activation=elu', 'optimizer.lr=0.012']
    """
    return [f"{key}={value}" for key, value in values.items()]


def summarize_params(values: Mapping[str, Any]) -> str:
    """Formats values for display.

    Example:
        >>> summarize_params({"activation": "elu", "optimizer.lr": 0.0012345678})
        'activation=elu optimizer.lr=0.001235'
    """
    short_values = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
    return " ".join(format_overrides(short_values))


def parse_override(text: str) -> Override:
    """Parses an override with Hydra."""
    (override,) = OverridesParser.create().parse_overrides([text])
    return override


def read_parameter(text: str, list_choices: Callable[[str], Collection[str]]) -> Parameter | None:
    """Parses an override as a parameter. Returns None if it has a single value.

    Args:
        text: Override in Hydra's grammar.
        list_choices: Returns the choices of a group, for ``glob``.

    Raises:
        UserError: If its values cannot be searched.
    """
    override = parse_override(text)
    if not override.is_sweep_override():
        return None
    key = override.key_or_group.lstrip("+")
    return Parameter(key, _build_distribution(override, key, list_choices))


def _build_distribution(
    override: Override, key: str, list_choices: Callable[[str], Collection[str]]
) -> BaseDistribution:
    values: Any = override.value()
    tags = set(getattr(values, "tags", None) or ())
    if tags - {"log"}:
        raise _unsearchable_error(override, f"the tag {min(tags - {'log'})} is unknown, only log is supported")
    log = "log" in tags
    match values:
        case ChoiceSweep():
            return CategoricalDistribution(_unique_choices(list(map(str, override.sweep_string_iterator())), override))
        case Glob():
            return CategoricalDistribution(_unique_choices(values.filter(sorted(list_choices(key))), override))
        case RangeSweep():
            return _build_range_distribution(values, override, log=log)
        case IntervalSweep(start=start, end=end) if start is not None and end is not None:
            if not start < end or (log and start <= 0):
                raise _unsearchable_error(override, "an interval must be increasing, and start above 0 with log")
            if isinstance(start, int) and isinstance(end, int):
                return IntDistribution(start, end, log=log)
            return FloatDistribution(start, end, log=log)
        case _:
            raise _unsearchable_error(override, "use a,b,c or choice, range, interval, glob")


def _build_range_distribution(values: RangeSweep, override: Override, *, log: bool) -> BaseDistribution:
    numbers = list(values.range())
    if not numbers:
        raise _unsearchable_error(override, "the range is empty")
    if len(numbers) > 1 and numbers[0] > numbers[-1]:
        numbers.reverse()
    is_integer = all(isinstance(number, int) for number in numbers)
    step = abs(values.step)
    if log and (not is_integer or step != 1):
        raise _unsearchable_error(override, "a range with steps cannot be logarithmic: use tag(log,interval(…))")
    if is_integer:
        return IntDistribution(numbers[0], numbers[-1], log=log, step=int(step))
    return FloatDistribution(float(numbers[0]), float(numbers[-1]), step=float(step))


def _unique_choices(choices: Sequence[str], override: Override) -> list[str]:
    if not choices:
        raise _unsearchable_error(override, "the pattern matches no choice")
    return list(dict.fromkeys(choices))


def _unsearchable_error(override: Override, reason: str) -> UserError:
    return UserError(f"{override.input_line}: {reason}")
