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

from stormproof_train.errors import UserError, first_line, rank_by_similarity

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Target:
    """A callable with the arguments a config gives it, checked, not yet called.

    Attributes:
        config_key: the config key it comes from, for messages.
        path: its import path, the entry's ``_target_``.
        function: the callable itself.
        kwargs: the arguments that the config gives.
        injectable: names of the arguments that the run will give it, where it takes them.
        is_function: whether it is itself the function of tensors that is wanted, rather than something that builds one.
    """

    config_key: str
    path: str
    function: Callable[..., Any]
    kwargs: Mapping[str, Any]
    injectable: frozenset[str]
    is_function: bool = False

    def arguments(self) -> dict[str, Any]:
        """Every effective argument that a config could set: what was given, and the signature's defaults."""
        defaults = {
            name: _to_plain_value(parameter.default)
            for name, parameter in _keyword_parameters(self.function).items()
            if parameter.default is not parameter.empty and name not in self.injectable
        }
        return {"_target_": self.path, **defaults, **_to_plain_value(self.kwargs)}

    def missing_arguments(self) -> list[str]:
        """The arguments without a default that neither the config nor the run gives."""
        return [
            name
            for name, parameter in _keyword_parameters(self.function).items()
            if parameter.default is parameter.empty and name not in self.kwargs and name not in self.injectable
        ]

    def accepts(self, name: str) -> bool:
        """Whether a config can set an argument of this name."""
        settable = name in _keyword_parameters(self.function) and name not in self.injectable
        return settable or _accepts_any_keyword(self.function)

    def uses_injected(self, name: str) -> bool:
        """Whether what the run offers under this name is used."""
        return name in self.injectable and name not in self.kwargs

    def build(self, **injected: Any) -> Any:
        """Calls it, with those of ``injected`` that it takes and the config does not set.

        What the config gives it to build is built first. It gets nothing of ``injected``, unless the callable
        :func:`forwards_arguments` that.

        Raises:
            UserError: if it refuses a value.
        """
        injected_kwargs = {name: value for name, value in injected.items() if self.uses_injected(name)}
        forwarded_names = getattr(self.function, _FORWARDED_ATTRIBUTE, ())
        arguments = {
            name: _instantiate(value, f"{self.config_key}.{name}", injected if name in forwarded_names else {})
            for name, value in self.kwargs.items()
        }
        if self.is_function:
            return functools.partial(self.function, **arguments, **injected_kwargs)
        try:
            return self.function(**arguments, **injected_kwargs)
        except (ValueError, TypeError, AssertionError, MisconfigurationException) as error:
            raise UserError(f"{self.config_key}: {first_line(error)} (raised by {self.path})") from error

    def factory(self, **injected: Any) -> Callable[[], Any]:
        """Something that builds a new one at each call."""
        return functools.partial(self.build, **injected)


_FORWARDED_ATTRIBUTE = "handed_on"


def forwards_arguments(*names: str) -> Callable[[_F], _F]:
    """Marks a callable whose arguments of these names are built with what the run offers, as it would be itself.

    Example:
        >>> @forwards_arguments("network")
        ... def frozen(network: torch.nn.Module) -> torch.nn.Module:
        ...     return network.requires_grad_(requires_grad=False)
        >>> frozen.handed_on
        ('network',)
    """

    def mark(function: _F) -> _F:
        setattr(function, _FORWARDED_ATTRIBUTE, names)
        return function

    return mark


def bind(
    entry: Mapping[str, Any] | None,
    config_key: str,
    injectable: frozenset[str] = frozenset(),
    num_tensor_args: int = 0,
    complete: bool = True,
) -> Target:
    """Binds a config entry, ``{"_target_": import path, argument: value, …}``, to the signature it names.

    Args:
        entry: plain values (no interpolations).
        config_key: its key in the config.
        injectable: arguments that the run itself can give.
        num_tensor_args: where a plain function of so many tensors will do as well as a class (``torch.tanh``), their
            number.
        complete: whether every argument without a default has to be given.

    Raises:
        UserError: no ``_target_``, nothing there, an unknown or missing argument, or a value of the wrong type.
    """
    if not isinstance(entry, Mapping) or "_target_" not in entry:
        raise UserError(
            f"{config_key} has no _target_, so there is nothing to build: choose one ({config_key}=…) or set "
            f"{config_key}._target_"
        )
    path = str(entry["_target_"])
    function = _import_target(path, config_key)
    kwargs = {str(name): value for name, value in entry.items() if name != "_target_"}
    parameters = _keyword_parameters(function)
    kwargs = {name: _check_value(value, name, config_key, path, function) for name, value in kwargs.items()}
    target = Target(config_key, path, function, kwargs, injectable & parameters.keys())
    missing = target.missing_arguments()
    is_function = (
        num_tensor_args > 0 and not inspect.isclass(function) and len(missing) == (num_tensor_args if parameters else 0)
    )
    if missing and not is_function and complete:
        raise UserError(f"{config_key}: {path} needs the argument {missing[0]}: set {config_key}.{missing[0]}=…")
    return dataclasses.replace(target, is_function=is_function)


def _import_target(path: str, config_key: str) -> Callable[..., Any]:
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:split])
        try:
            target: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                continue
            raise UserError(
                f"{config_key}._target_={path} needs the package {error.name}, which is not installed"
            ) from error
        for depth, name in enumerate(parts[split:], start=split):
            if not hasattr(target, name):
                parent = ".".join(parts[:depth])
                names = (
                    [attribute for attribute in vars(target) if not attribute.startswith("_")]
                    if hasattr(target, "__dict__")
                    else []
                )
                raise UserError(f"{config_key}._target_={path}: {parent} has no {name}{_suggestion(name, names)}")
            target = getattr(target, name)
        if not callable(target):
            raise UserError(f"{config_key}._target_={path} is a {type(target).__name__}, not something to call")
        return target
    raise UserError(
        f"{config_key}._target_={path}: there is no module {parts[0]}; write package.module.Name, importable from here"
    )


def _keyword_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some builtins have none
        return {}
    keyword_kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in keyword_kinds}


def _accepts_any_keyword(function: Callable[..., Any]) -> bool:
    if inspect.isclass(function) and function.__init__ is torch.nn.Module.__init__:
        return False  # it has the signature of all, and refuses whatever comes
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return True
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _check_value(value: Any, name: str, config_key: str, path: str, function: Callable[..., Any]) -> Any:
    parameters = _keyword_parameters(function)
    if name not in parameters:
        if _accepts_any_keyword(function):
            return value
        names = list(parameters)
        accepted_names = f"it takes {', '.join(names) or 'none'}"
        raise UserError(
            f"{config_key}.{name}: {path} has no argument {name}{_suggestion(name, names)} ({accepted_names})"
        )
    hint = _type_hints(function).get(name, Any)
    if hint is Any or _has_target(value) or (isinstance(value, list) and any(map(_has_target, value))):
        return value
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in {typing.Union, types.UnionType} else (hint,)
    # YAML has no tuples; and True is an int to Python, not to whoever wrote it
    candidates = [value, tuple(value)] if isinstance(value, list) else [value]
    if isinstance(value, bool) and not {bool, object, Any} & set(alternatives):
        candidates = []
    for candidate in candidates:
        if _matches_hint(candidate, hint):
            return candidate
    raise UserError(f"{config_key}.{name}={value!r} should be {_describe_hint(hint)} ({path})")


def _matches_hint(value: Any, hint: Any) -> bool:
    all_items = typeguard.CollectionCheckStrategy.ALL_ITEMS
    try:
        typeguard.check_type(value, hint, collection_check_strategy=all_items)
    except typeguard.TypeCheckError:
        return False
    return True


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    owner = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(owner)
    except (NameError, TypeError, AttributeError):  # names that exist only for type checkers
        return {}


def _describe_hint(hint: Any) -> str:
    """A type in words.

    Example:
        >>> _describe_hint(typing.Literal["balanced"] | Sequence[float] | None)
        "'balanced', a list of float, or null"
    """
    origin, hint_args = typing.get_origin(hint), typing.get_args(hint)
    if hint is None or hint is types.NoneType:
        return "null"
    if origin in {typing.Union, types.UnionType}:
        return _join_alternatives([_describe_hint(hint_arg) for hint_arg in hint_args])
    if origin is typing.Literal:
        return _join_alternatives([repr(hint_arg) for hint_arg in hint_args])
    if origin is tuple and ... not in hint_args:
        return f"a list of {', '.join(map(_describe_hint, hint_args))}"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"a list of {_describe_hint(hint_args[0])}"
    return hint.__name__ if inspect.isclass(hint) and not hint_args else str(hint).replace("typing.", "")


def _join_alternatives(alternatives: list[str]) -> str:
    return (
        " or ".join(alternatives) if len(alternatives) < 3 else f"{', '.join(alternatives[:-1])}, or {alternatives[-1]}"
    )


def _suggestion(text: str, candidates: list[str]) -> str:
    suggestions = [name for name in rank_by_similarity(text, candidates)[:1] if name]
    return f"; did you mean {suggestions[0]}?" if suggestions else ""


def _has_target(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _instantiate(value: Any, config_key: str, injected: Mapping[str, Any]) -> Any:
    if _has_target(value):
        return bind(value, config_key, frozenset(injected)).build(**injected)
    if isinstance(value, Mapping):
        return {key: _instantiate(item, f"{config_key}.{key}", injected) for key, item in value.items()}
    if isinstance(value, list):
        return [_instantiate(item, f"{config_key}[{index}]", injected) for index, item in enumerate(value)]
    return value


def _to_plain_value(value: Any) -> Any:
    """As YAML and JSON can hold it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _to_plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain_value(item) for item in value]
    # By name, never by repr: that may hold a memory address, and the run's identity is made of this.
    owner = value if hasattr(value, "__qualname__") else type(value)
    return f"{owner.__module__}.{owner.__qualname__}"
