"""Each argument of each public constructor and function is checked by name."""

from __future__ import annotations

import copy
import enum
import inspect
import math
import pickle
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import stormproof
from stormproof import CheckpointRecovery, HangWatch, Preemption, testing
from stormproof.arguments import check_arguments
from stormproof.checkpoint import Retention, Store
from stormproof.testing import FaultInjector

REQUIRED = {
    "dirpath": "checkpoints",
    "folder": "checkpoints",
    "path": Path("file"),
    "reason": "a wait",
    "loader": [],
    "seconds": 1,
}
EXTRA = {("CheckpointRecovery", "save_top_k"): {"monitor": "val/loss"}}
UNLIMITED = {"seed", "dim", "factor"}
CHECKED_IN_POST_INIT = {"Finding", "Rule", "NotEnoughEvidence"}  # tested in test_finding.py and test_rule_set.py
VALUES = (
    None,
    True,
    2,
    2.5,
    "50",
    "10m",
    math.nan,
    np.float32(2),
    object(),
    b"bytes",
    [1],
    {1: 2},
    len,
    Path("a"),
    timedelta(1),
)
ACCEPTED: dict[Any, tuple[type, ...]] = {
    NoneType: (NoneType,),
    bool: (bool,),
    int: (int, np.integer),
    float: (int, float, np.number),
    str: (str,),
    Path: (Path,),
    timedelta: (timedelta,),
    Callable: (type(len),),
    Iterable: (list, dict),
    Collection: (list, dict),
    Mapping: (dict,),
}


def _find_functions() -> dict[str, Callable[..., Any]]:
    functions: dict[str, Callable[..., Any]] = {"Store": Store, "Retention": Retention}
    for name in stormproof.__all__:
        value = getattr(stormproof, name)
        is_constructed_by_users = not (isinstance(value, type) and issubclass(value, BaseException | enum.Enum))
        if is_constructed_by_users and name not in CHECKED_IN_POST_INIT:
            functions[name] = value
    functions |= {
        name: value
        for name, value in ((name, getattr(testing, name)) for name in testing.__all__)
        if inspect.isfunction(value)
    }
    for name, method in inspect.getmembers(FaultInjector, inspect.isfunction):
        if not name.startswith("_") and inspect.signature(method).return_annotation == "FaultInjector":
            functions[name] = lambda *args, name=name, **kwargs: getattr(FaultInjector(), name)(*args, **kwargs)
            functions[name].__signature__ = inspect.signature(getattr(FaultInjector(), name))
            functions[name].__annotations__ = get_type_hints(getattr(FaultInjector, name))
    return functions


FUNCTIONS = _find_functions()


def _read_hints(function: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(function.__init__ if isinstance(function, type) else function)
    return {name: hints[name] for name in inspect.signature(function).parameters if name in hints}


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)


def _is_accepted(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind is Literal:
        return value in get_args(hint)
    is_wrong_bool = isinstance(value, bool) and kind is not bool
    return isinstance(value, ACCEPTED.get(kind, (kind,))) and not is_wrong_bool


ARGUMENTS = [
    (function, argument, hint)
    for function in FUNCTIONS
    for argument, hint in _read_hints(FUNCTIONS[function]).items()
    if hint is not Any
]


def _call(function: str, argument: str, value: Any) -> None:
    names = inspect.signature(FUNCTIONS[function]).parameters
    required = {name: REQUIRED[name] for name in names if names[name].default is inspect.Parameter.empty}
    FUNCTIONS[function](**{**required, **EXTRA.get((function, argument), {}), argument: value})


def test_all_public_functions_are_found():
    assert {"CheckpointRecovery", "HangWatch", "resumable", "long_wait", "kill", "torn_write", "flip_bit"} <= {
        *FUNCTIONS
    }
    assert len(ARGUMENTS) > 80


@pytest.mark.parametrize(
    ("function", "argument", "hint"), ARGUMENTS, ids=[f"{name}-{item}" for name, item, _ in ARGUMENTS]
)
def test_a_value_of_a_wrong_type_is_refused_by_name(function: str, argument: str, hint: Any):
    wrong = [value for value in VALUES if not any(_is_accepted(value, option) for option in _options(hint))]
    assert wrong
    for value in wrong:
        with pytest.raises((TypeError, ValueError)) as caught:
            _call(function, argument, value)
        assert f"`{argument}` must be " in str(caught.value)
        assert f"got {value!r:.100}" in str(caught.value)


NUMBERS = [
    (function, argument, kind)
    for function, argument, hint in ARGUMENTS
    for kind in (int, float)
    if kind in _options(hint) and argument not in UNLIMITED
]


@pytest.mark.parametrize(("function", "argument", "kind"), NUMBERS)
def test_a_number_out_of_range_is_refused_by_name(function: str, argument: str, kind: type):
    for value in [kind(-(10**9)), np.int64(-(10**9)), *([math.nan, -math.inf] if kind is float else [])]:
        with pytest.raises(ValueError, match=f"`{argument}`.*got .*{float(value):.0f}"):
            _call(function, argument, value)


def test_values_of_numpy_and_home_folders_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recovery = CheckpointRecovery("~/run", every_n_train_steps=np.int64(5))
    assert recovery.store.folder == tmp_path / "run"
    assert type(recovery.schedule.every_n_train_steps) is int
    assert HangWatch(np.float32(2), run_folder=Path("~/run")).run_folder == tmp_path / "run"


@pytest.mark.parametrize(
    ("function", "argument"), [("CheckpointRecovery", "dirpath"), ("HangWatch", "run_folder"), ("Store", "folder")]
)
def test_an_empty_path_is_refused(function: str, argument: str):
    with pytest.raises(ValueError, match=f"`{argument}` must not be empty, got ''"):
        _call(function, argument, "")


def test_signatures_and_errors_of_calls_are_those_of_the_function():
    assert list(inspect.signature(CheckpointRecovery).parameters)[:2] == ["dirpath", "every_n_train_steps"]
    with pytest.raises(TypeError, match=r"CheckpointRecovery.__init__\(\) got an unexpected keyword argument 'every'"):
        CheckpointRecovery("run", every=5)
    with pytest.raises(
        TypeError, match=r"CheckpointRecovery.__init__\(\) missing 1 required positional argument: 'dirpath'"
    ):
        CheckpointRecovery()
    assert pickle.loads(pickle.dumps(Retention(3))) == copy.deepcopy(Retention(3)) == Retention(3)
    assert copy.deepcopy(Preemption(5)).grace_seconds == 5


def test_a_text_is_no_collection_and_may_be_empty_if_this_is_the_default():
    @check_arguments()
    def function(names: Collection[str] = (), note: str = "") -> tuple[Any, ...]:
        return names, note

    assert function(["a"], "") == (["a"], "")
    with pytest.raises(TypeError, match=r"`names` must be a set or a list, got 'a' \(str\)"):
        function("a")
