"""The space of a search: Hydra's sweep grammar read as Optuna's distributions."""

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

MOST_COMBINATIONS = 100_000
"""As many of a grid are listed."""


@dataclass(frozen=True)
class Parameter:
    """A setting that is searched.

    Attributes:
        key: of the setting, as a user types it.
        distribution: of its values; choices are held as texts in Hydra's grammar.
        only_with: by key of a choice, those of its values under which there is such a setting.
    """

    key: str
    distribution: BaseDistribution
    only_with: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def exists(self, chosen: Mapping[str, Any]) -> bool:
        """Whether there is such a setting, given what has been chosen before it."""
        return all(chosen.get(group) in choices for group, choices in self.only_with.items())

    def suggest(self, trial: optuna.Trial) -> Any:
        """Its value in a trial."""
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
        """All of its values; None where they are too many to count."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return list(choices)
            case IntDistribution(low=low, high=high, log=False, step=step):
                return list(range(low, high + 1, step))
            case FloatDistribution(low=low, high=high, step=float(step)):
                return [low + place * step for place in range(round((high - low) / step) + 1)]
            case _:
                return None

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        known = {"key": self.key, "kind": "choice", "log": False, "choices": None, "low": None, "high": None}
        known["only_with"] = {group: sorted(choices) for group, choices in self.only_with.items()}
        if isinstance(self.distribution, CategoricalDistribution):
            return known | {"choices": list(self.distribution.choices)}
        assert isinstance(self.distribution, IntDistribution | FloatDistribution)
        kind = "int" if isinstance(self.distribution, IntDistribution) else "float"
        bounds = {"low": self.distribution.low, "high": self.distribution.high}
        return known | {"kind": kind, "log": self.distribution.log, "step": self.distribution.step, **bounds}


class Space:
    """All that is searched, choices of groups first.

    Args:
        parameters: in any order.

    Raises:
        UserError: if there are none.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        if not parameters:
            raise UserError(
                "nothing is searched: give a setting several values, as activation=relu,elu or "
                "'optimizer.lr=tag(log,interval(1e-4,1e-1))'"
            )
        self.parameters = sorted(parameters, key=lambda each: (bool(each.only_with), "." in each.key))

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """The values of a trial; those that exist."""
        chosen: dict[str, Any] = {}
        for each in self.parameters:
            if each.exists(chosen):
                chosen[each.key] = each.suggest(trial)
        return chosen

    def combinations(self) -> list[dict[str, Any]] | None:
        """All that there are; None where they are too many to list."""
        values = {each.key: each.values() for each in self.parameters}
        counted = {key: listed for key, listed in values.items() if listed is not None}
        if len(counted) < len(values):
            return None
        if math.prod(map(len, counted.values())) > MOST_COMBINATIONS:
            return None
        return list(self._combined(counted))

    def _combined(self, values: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
        seen = set()
        for combination in itertools.product(*(values[each.key] for each in self.parameters)):
            chosen: dict[str, Any] = {}
            for each, value in zip(self.parameters, combination, strict=True):
                if each.exists(chosen):
                    chosen[each.key] = value
            if (key := tuple(chosen.items())) not in seen:
                seen.add(key)
                yield chosen


def words_of(values: Mapping[str, Any]) -> list[str]:
    """Values as overrides; a float in all its digits.

    Example:
        >>> words_of({"activation": "elu", "optimizer.lr": 0.012})
        ['activation=elu', 'optimizer.lr=0.012']
    """
    return [f"{key}={value}" for key, value in values.items()]


def in_short(values: Mapping[str, Any]) -> str:
    """Values for a person.

    Example:
        >>> in_short({"activation": "elu", "optimizer.lr": 0.0012345678})
        'activation=elu optimizer.lr=0.001235'
    """
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
    return " ".join(words_of(shown))


def parsed(word: str) -> Override:
    """A word of the command line, read by Hydra."""
    (override,) = OverridesParser.create().parse_overrides([word])
    return override


def read_parameter(word: str, choices_of: Callable[[str], Collection[str]]) -> Parameter | None:
    """A word of the command line as a parameter; None where it has one value.

    Args:
        word: in Hydra's grammar.
        choices_of: the choices of a group, for ``glob``.

    Raises:
        UserError: if it names values that cannot be searched.
    """
    override = parsed(word)
    if not override.is_sweep_override():
        return None
    key = override.key_or_group.lstrip("+")
    return Parameter(key, _distribution(override, key, choices_of))


def _distribution(override: Override, key: str, choices_of: Callable[[str], Collection[str]]) -> BaseDistribution:
    values: Any = override.value()
    tags = set(getattr(values, "tags", None) or ())
    if tags - {"log"}:
        raise _unsearchable(override, f"there is no tag {min(tags - {'log'})}, only log")
    log = "log" in tags
    match values:
        case ChoiceSweep():
            return CategoricalDistribution(_distinct(list(map(str, override.sweep_string_iterator())), override))
        case Glob():
            return CategoricalDistribution(_distinct(values.filter(sorted(choices_of(key))), override))
        case RangeSweep():
            return _range(values, override, log=log)
        case IntervalSweep(start=start, end=end) if start is not None and end is not None:
            if not start < end or (log and start <= 0):
                raise _unsearchable(override, "an interval goes up, and with log it begins above 0")
            if isinstance(start, int) and isinstance(end, int):
                return IntDistribution(start, end, log=log)
            return FloatDistribution(start, end, log=log)
        case _:
            raise _unsearchable(override, "write a,b,c or choice, range, interval, glob")


def _range(values: RangeSweep, override: Override, *, log: bool) -> BaseDistribution:
    listed = list(values.range())
    if not listed:
        raise _unsearchable(override, "that range is empty")
    if len(listed) > 1 and listed[0] > listed[-1]:
        listed.reverse()
    whole = all(isinstance(each, int) for each in listed)
    step = abs(values.step)
    if log and (not whole or step != 1):
        raise _unsearchable(override, "a range with steps has no logarithmic form: write tag(log,interval(…))")
    if whole:
        return IntDistribution(listed[0], listed[-1], log=log, step=int(step))
    return FloatDistribution(float(listed[0]), float(listed[-1]), step=float(step))


def _distinct(choices: Sequence[str], override: Override) -> list[str]:
    if not choices:
        raise _unsearchable(override, "nothing fits that pattern")
    return list(dict.fromkeys(choices))


def _unsearchable(override: Override, why: str) -> UserError:
    return UserError(f"{override.input_line}: {why}")
