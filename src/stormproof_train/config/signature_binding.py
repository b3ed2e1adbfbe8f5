"""Binds config entries to the signatures of the callables that they build. The signature is the schema."""

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
    """A callable with validated arguments from a config, not called yet.

    Attributes:
        config_key: Config key of the entry, for messages.
        path: Import path, the entry's ``_target_``.
        function: The callable.
        kwargs: Arguments from the config.
        injectable: Names of the arguments that the run passes.
        is_function: True if the callable is itself the required function of tensors, instead of building an object.
    """

    config_key: str
    path: str
    function: Callable[..., Any]
    kwargs: Mapping[str, Any]
    injectable: frozenset[str]
    is_function: bool = False

    def arguments(self) -> dict[str, Any]:
        """Returns the effective arguments that a config can set, including the defaults of the signature."""
        defaults = {
            name: _to_plain_value(parameter.default)
            for name, parameter in _keyword_parameters(self.function).items()
            if parameter.default is not parameter.empty and name not in self.injectable
        }
        return {"_target_": self.path, **defaults, **_to_plain_value(self.kwargs)}

    def missing_arguments(self) -> list[str]:
        """Returns the arguments without a default that neither the config nor the run sets."""
        return [
            name
            for name, parameter in _keyword_parameters(self.function).items()
            if parameter.default is parameter.empty and name not in self.kwargs and name not in self.injectable
        ]

    def accepts(self, name: str) -> bool:
        """Returns True if a config can set an argument of this name."""
        settable = name in _keyword_parameters(self.function) and name not in self.injectable
        return settable or _accepts_any_keyword(self.function)

    def uses_injected(self, name: str) -> bool:
        """Returns True if the callable gets the run's value of this name."""
        return name in self.injectable and name not in self.kwargs

    def build(self, **injected: Any) -> Any:
        """Calls the callable with its arguments, and with ``injected`` ones that it accepts and the config lacks.

        Nested entries are built first. They get values from ``injected`` only if the callable forwards them, see
        :func:`forwards_arguments`.

        Raises:
            UserError: If the callable rejects a value.
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
            reason = first_line(error).removesuffix(".")
            raise UserError(f"{self.config_key}: {reason} (raised by {self.path})") from error

    def factory(self, **injected: Any) -> Callable[[], Any]:
        """Returns a function that builds a new object on each call."""
        return functools.partial(self.build, **injected)


_FORWARDED_ATTRIBUTE = "forwarded_arguments"


def forwards_arguments(*names: str) -> Callable[[_F], _F]:
    """Marks a callable whose arguments of these names are built with the values that the run passes.

    Example:
        >>> @forwards_arguments("network")
        ... def frozen(network: torch.nn.Module) -> torch.nn.Module:
        ...     return network.requires_grad_(requires_grad=False)
        >>> frozen.forwarded_arguments
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
    """Binds a config entry, ``{"_target_": import path, argument: value, …}``, to the signature of its target.

    Args:
        entry: Plain values without interpolations.
        config_key: Key of the entry in the config.
        injectable: Names of the arguments that the run can pass.
        num_tensor_args: Number of tensor arguments of a plain function that is accepted instead of a class
            (``torch.tanh``). 0 accepts classes and factories only.
        complete: If True, all arguments without a default must be set.

    Raises:
        UserError: If ``_target_`` is missing or cannot be imported, an argument is unknown or missing, or a value has
            the wrong type.
    """
    if not isinstance(entry, Mapping) or "_target_" not in entry:
        raise UserError(
            f"{config_key} has no _target_, so there is nothing to build. Choose an option ({config_key}=…), or set "
            f"{config_key}._target_."
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
        raise UserError(f"{config_key}: {path} needs the argument {missing[0]}. Set {config_key}.{missing[0]}=….")
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
            raise UserError(
                f"{config_key}._target_={path} must be callable, got an object of type {type(target).__name__}"
            )
        return target
    raise UserError(
        f"{config_key}._target_={path}: there is no module {parts[0]}. Use package.module.Name of an importable module."
    )


def _keyword_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some builtins have no signature
        return {}
    keyword_kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in keyword_kinds}


def _accepts_any_keyword(function: Callable[..., Any]) -> bool:
    if inspect.isclass(function) and function.__init__ is torch.nn.Module.__init__:
        return False  # its signature accepts any argument, but calls with arguments fail
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
        accepted_names = f"arguments: {', '.join(names) or 'none'}"
        raise UserError(
            f"{config_key}.{name}: {path} has no argument {name}{_suggestion(name, names)} ({accepted_names})"
        )
    hint = _type_hints(function).get(name, Any)
    if hint is Any or _has_target(value) or (isinstance(value, list) and any(map(_has_target, value))):
        return value
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in {typing.Union, types.UnionType} else (hint,)
    # YAML has no tuples. True is an int in Python, but not in a config.
    candidates = [value, tuple(value)] if isinstance(value, list) else [value]
    if isinstance(value, bool) and not {bool, object, Any} & set(alternatives):
        candidates = []
    for candidate in candidates:
        if _matches_hint(candidate, hint):
            return candidate
    raise UserError(f"{config_key}.{name} must be {_describe_hint(hint)}, got {value!r} ({path})")


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
    except (NameError, TypeError, AttributeError):  # names that are imported for type checkers only
        return {}


def _describe_hint(hint: Any) -> str:
    """Describes a type in words.

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
    """Converts a value to types of YAML and JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _to_plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain_value(item) for item in value]
    # By name instead of repr, which may contain a memory address. The identity of the run depends on this value.
    owner = value if hasattr(value, "__qualname__") else type(value)
    return f"{owner.__module__}.{owner.__qualname__}"
