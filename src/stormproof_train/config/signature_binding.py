"""A config entry bound to the signature of what it builds: the signature is the schema."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import typeguard
from lightning_fabric.utilities.exceptions import MisconfigurationException

from stormproof_train.errors import UserError, first_line, nearest

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Target:
    """A callable with the arguments a config gives it, checked, not yet called.

    Attributes:
        where: the config key it comes from, for messages.
        path: its import path, the entry's ``_target_``.
        function: the callable itself.
        given: the arguments that the config gives.
        offered: names of the arguments that the run will give it, where it takes them.
        applied: whether it is itself the function of tensors that is wanted, rather than something that builds one.
    """

    where: str
    path: str
    function: Callable[..., Any]
    given: Mapping[str, Any]
    offered: frozenset[str]
    applied: bool = False

    def arguments(self) -> dict[str, Any]:
        """Every effective argument that a config could set: what was given, and the signature's defaults."""
        defaults = {
            name: _plain(parameter.default)
            for name, parameter in _parameters(self.function).items()
            if parameter.default is not parameter.empty and name not in self.offered
        }
        return {"_target_": self.path, **defaults, **_plain(self.given)}

    def missing(self) -> list[str]:
        """The arguments without a default that neither the config nor the run gives."""
        return [
            name
            for name, parameter in _parameters(self.function).items()
            if parameter.default is parameter.empty and name not in self.given and name not in self.offered
        ]

    def has(self, name: str) -> bool:
        """Whether a config can set an argument of this name."""
        settable = name in _parameters(self.function) and name not in self.offered
        return settable or _takes_anything(self.function)

    def takes(self, name: str) -> bool:
        """Whether what the run offers under this name is used."""
        return name in self.offered and name not in self.given

    def build(self, **offered: Any) -> Any:
        """Calls it, with those of ``offered`` that it takes and the config does not set.

        What the config gives it to build is built first. It gets nothing of ``offered``, unless the callable
        :func:`hands_on` that.

        Raises:
            UserError: if it refuses a value.
        """
        taken = {name: value for name, value in offered.items() if self.takes(name)}
        handed_on = getattr(self.function, _HANDED_ON, ())
        arguments = {
            name: _instantiate(value, f"{self.where}.{name}", offered if name in handed_on else {})
            for name, value in self.given.items()
        }
        if self.applied:
            return functools.partial(self.function, **arguments, **taken)
        try:
            return self.function(**arguments, **taken)
        except (ValueError, TypeError, AssertionError, MisconfigurationException) as error:
            raise UserError(f"{self.where}: {first_line(error)} (raised by {self.path})") from error

    def factory(self, **offered: Any) -> Callable[[], Any]:
        """Something that builds a new one at each call."""
        return functools.partial(self.build, **offered)


_HANDED_ON = "handed_on"


def hands_on(*names: str) -> Callable[[_F], _F]:
    """Marks a callable whose arguments of these names are built with what the run offers, as it would be itself.

    Example:
        >>> @hands_on("network")
        ... def frozen(network: torch.nn.Module) -> torch.nn.Module:
        ...     return network.requires_grad_(requires_grad=False)
        >>> frozen.handed_on
        ('network',)
    """

    def mark(function: _F) -> _F:
        setattr(function, _HANDED_ON, names)
        return function

    return mark


def bind(
    entry: Mapping[str, Any] | None,
    where: str,
    offered: frozenset[str] = frozenset(),
    tensors: int = 0,
    complete: bool = True,
) -> Target:
    """Binds a config entry, ``{"_target_": import path, argument: value, …}``, to the signature it names.

    Args:
        entry: plain values (no interpolations).
        where: its key in the config.
        offered: arguments that the run itself can give.
        tensors: where a plain function of so many tensors will do as well as a class (``torch.tanh``), their number.
        complete: whether every argument without a default has to be given.

    Raises:
        UserError: no ``_target_``, nothing there, an unknown or missing argument, or a value of the wrong type.
    """
    if not isinstance(entry, Mapping) or "_target_" not in entry:
        raise UserError(
            f"{where} has no _target_, so there is nothing to build: choose one ({where}=…) or set {where}._target_"
        )
    path = str(entry["_target_"])
    function = _locate(path, where)
    given = {str(name): value for name, value in entry.items() if name != "_target_"}
    parameters = _parameters(function)
    given = {name: _check(value, name, where, path, function) for name, value in given.items()}
    target = Target(where, path, function, given, offered & parameters.keys())
    missing = target.missing()
    applied = tensors > 0 and not inspect.isclass(function) and len(missing) == (tensors if parameters else 0)
    if missing and not applied and complete:
        raise UserError(f"{where}: {path} needs the argument {missing[0]}: set {where}.{missing[0]}=…")
    return dataclasses.replace(target, applied=applied)


def _locate(path: str, where: str) -> Callable[..., Any]:
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:split])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                continue
            raise UserError(
                f"{where}._target_={path} needs the package {error.name}, which is not installed"
            ) from error
        for depth, name in enumerate(parts[split:], start=split):
            if not hasattr(found, name):
                holder = ".".join(parts[:depth])
                names = [word for word in vars(found) if not word.startswith("_")] if hasattr(found, "__dict__") else []
                raise UserError(f"{where}._target_={path}: {holder} has no {name}{_did_you_mean(name, names)}")
            found = getattr(found, name)
        if not callable(found):
            raise UserError(f"{where}._target_={path} is a {type(found).__name__}, not something to call")
        return found
    raise UserError(
        f"{where}._target_={path}: there is no module {parts[0]}; write package.module.Name, importable from here"
    )


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some builtins have none
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in named}


def _takes_anything(function: Callable[..., Any]) -> bool:
    if inspect.isclass(function) and function.__init__ is torch.nn.Module.__init__:
        return False  # it has the signature of all, and refuses whatever comes
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return True
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _check(value: Any, name: str, where: str, path: str, function: Callable[..., Any]) -> Any:
    parameters = _parameters(function)
    if name not in parameters:
        if _takes_anything(function):
            return value
        names = list(parameters)
        taken = f"it takes {', '.join(names) or 'none'}"
        raise UserError(f"{where}.{name}: {path} has no argument {name}{_did_you_mean(name, names)} ({taken})")
    hint = _hints(function).get(name, Any)
    if hint is Any or _holds_target(value) or (isinstance(value, list) and any(map(_holds_target, value))):
        return value
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in {typing.Union, types.UnionType} else (hint,)
    # YAML has no tuples; and True is an int to Python, not to whoever wrote it
    candidates = [value, tuple(value)] if isinstance(value, list) else [value]
    if isinstance(value, bool) and not {bool, object, Any} & set(alternatives):
        candidates = []
    for candidate in candidates:
        if _is_a(candidate, hint):
            return candidate
    raise UserError(f"{where}.{name}={value!r} should be {_hint_name(hint)} ({path})")


def _is_a(value: Any, hint: Any) -> bool:
    every = typeguard.CollectionCheckStrategy.ALL_ITEMS
    try:
        typeguard.check_type(value, hint, collection_check_strategy=every)
    except typeguard.TypeCheckError:
        return False
    return True


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    owner = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(owner)
    except (NameError, TypeError, AttributeError):  # names that exist only for type checkers
        return {}


def _hint_name(hint: Any) -> str:
    """A type in words.

    Example:
        >>> _hint_name(typing.Literal["balanced"] | Sequence[float] | None)
        "'balanced', a list of float, or null"
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is None or hint is types.NoneType:
        return "null"
    if origin in {typing.Union, types.UnionType}:
        return _either([_hint_name(part) for part in parts])
    if origin is typing.Literal:
        return _either([repr(part) for part in parts])
    if origin is tuple and ... not in parts:
        return f"a list of {', '.join(map(_hint_name, parts))}"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"a list of {_hint_name(parts[0])}"
    return hint.__name__ if inspect.isclass(hint) and not parts else str(hint).replace("typing.", "")


def _either(words: list[str]) -> str:
    return " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])}, or {words[-1]}"


def _did_you_mean(word: str, known: list[str]) -> str:
    close = [name for name in nearest(word, known)[:1] if name]
    return f"; did you mean {close[0]}?" if close else ""


def _holds_target(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _instantiate(value: Any, where: str, offered: Mapping[str, Any]) -> Any:
    if _holds_target(value):
        return bind(value, where, frozenset(offered)).build(**offered)
    if isinstance(value, Mapping):
        return {key: _instantiate(item, f"{where}.{key}", offered) for key, item in value.items()}
    if isinstance(value, list):
        return [_instantiate(item, f"{where}[{index}]", offered) for index, item in enumerate(value)]
    return value


def _plain(value: Any) -> Any:
    """As YAML and JSON can hold it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # By name, never by repr: that may hold a memory address, and the run's identity is made of this.
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
