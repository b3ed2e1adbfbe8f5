"""Objects that break code which reads attributes of any object: proxies, mocks, and methods that raise.

Tests copy this file into programs, in which its classes belong to the user.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn
from unittest.mock import MagicMock, Mock

import torch


def _fail(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError("this object cannot be read")


class AnswersNames:
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


class AnswersAllNames:
    def __getattr__(self, name: str) -> Any:
        return self


class RaisesForNames:
    __getattr__ = _fail


class RaisesForAllNames:
    __getattribute__ = _fail


class RaisingMethods:
    __eq__ = __hash__ = __len__ = __bool__ = __repr__ = __iter__ = __call__ = __deepcopy__ = __getstate__ = _fail


class Nonsense:
    __hash__ = None
    __len__ = __bool__ = lambda self: "many"
    __repr__ = lambda self: 3  # noqa: E731

    def __eq__(self, other: object) -> Any:
        return torch.ones(2)


class RaisingProperties:
    __dict__ = __class__ = dtype = size = shape = optimizer = state_dict = tolist = property(_fail)


class _AnsweringMeta(type):
    def __getattr__(cls, name: str) -> Any:
        return lambda *args, **kwargs: None


class AnsweringClass(metaclass=_AnsweringMeta):
    pass


class RaisingList(list):
    __iter__ = __len__ = __repr__ = __eq__ = __getitem__ = __bool__ = _fail


class RaisingDict(dict):
    __iter__ = __len__ = __repr__ = __eq__ = __getitem__ = __bool__ = items = values = keys = get = _fail


class RaisingText(str):
    __iter__ = __len__ = __repr__ = __eq__ = __hash__ = __contains__ = _fail


class RaisingInt(int):
    __repr__ = __eq__ = __hash__ = __int__ = __index__ = __bool__ = _fail


class RaisingFloat(float):
    __repr__ = __eq__ = __hash__ = __float__ = is_integer = _fail


class RaisingMapping(Mapping):
    __getitem__ = __len__ = _fail

    def __iter__(self) -> Iterator[str]:
        return iter("ab")


class RaisingEnum(enum.Enum):
    MEMBER = 1
    __repr__ = __str__ = _fail


class RaisingModule(torch.nn.Module):
    __eq__ = __len__ = __bool__ = __repr__ = _fail
    __hash__ = object.__hash__


HOSTILE_OBJECTS: dict[str, Callable[[], Any]] = {
    **{
        kind.__name__: kind
        for kind in (
            AnswersNames, AnswersAllNames, RaisesForNames, RaisesForAllNames, RaisingMethods, Nonsense,
            RaisingProperties, AnsweringClass, RaisingMapping, RaisingModule, Mock, MagicMock,
        )
    },
    "class with answering metaclass": lambda: AnsweringClass,
    "RaisingList": lambda: RaisingList([1, 2]),
    "RaisingDict": lambda: RaisingDict(a=1),
    "RaisingText": lambda: RaisingText("text"),
    "RaisingInt": lambda: RaisingInt(3),
    "RaisingFloat": lambda: RaisingFloat(0.5),
    "RaisingEnum": lambda: RaisingEnum.MEMBER,
    "list of hostile objects": lambda: [AnswersAllNames(), RaisingMethods(), RaisingInt(1)],
    "dict with hostile keys": lambda: {Mock(): 1, RaisingEnum.MEMBER: 2},
    **{
        f"mock of {kind.__name__}": lambda kind=kind: MagicMock(spec=kind)
        for kind in (torch.Tensor, torch.nn.Module, torch.Generator, int, float, str, list, dict)
    },
}  # fmt: skip
