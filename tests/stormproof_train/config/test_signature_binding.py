import datetime as dt
import enum
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Optional

import pytest
import torch

from stormproof_train.config.signature_binding import Target, bind, forwards_arguments
from stormproof_train.errors import UserError

HERE = __name__


class Colour(enum.Enum):
    RED = 1


@dataclass
class Thing:
    """Something with a hint of each kind."""

    count: int = 1
    rate: float = 0.5
    word: str = "w"
    flag: bool = False
    maybe: int | None = None
    old: Optional[float] = None  # noqa: UP045 (torch's own signatures have it)
    choice: Literal["a", "b"] = "a"
    numbers: Sequence[int] = ()
    pair: tuple[float, float] = (0.1, 0.2)
    maybe_pair: tuple[int, int] | int | None = None
    fractions: Sequence[Fraction] = ()
    anything: Any = None
    loose: Any | None = None


@dataclass
class Needs:
    first: int
    second: int = 2


def takes_anything(**options: object) -> dict[str, object]:
    return options


def refuses(value: int = 0) -> None:
    raise ValueError(f"{value} is impossible")


def defaults(function: Callable[..., Any] = torch.tanh, kind: type = int, colour: Colour = Colour.RED) -> None: ...


def seeded(seed: int = 7, size: int = 1) -> tuple[int, int]:
    return seed, size


not_callable = 3


def around(inner: object) -> object:
    return inner


@forwards_arguments("inner")
def around_what_is_handed_on(inner: object) -> object:
    return inner


def _bind(name: str = "Thing", where: str = "model", offered: frozenset[str] = frozenset(), **arguments: Any) -> Target:
    return bind({"_target_": f"{HERE}.{name}", **arguments}, where, offered)


ACCEPTED = {
    "an int": ("count", 3, 3),
    "an int for a float": ("rate", 1, 1),
    "a float": ("rate", 1e-3, 1e-3),
    "a word": ("word", "x", "x"),
    "a bool": ("flag", True, True),
    "null where it may be": ("maybe", None, None),
    "a number where null may be": ("maybe", 4, 4),
    "a number for typing's Optional": ("old", 0.5, 0.5),
    "one of the words": ("choice", "b", "b"),
    "a list": ("numbers", [1, 2], [1, 2]),
    "a list for a tuple": ("pair", [0.8, 0.9], (0.8, 0.9)),
    "a list where a tuple may be": ("maybe_pair", [3, 5], (3, 5)),
    "a number where a tuple may be": ("maybe_pair", 3, 3),
    "a bool for anything": ("anything", True, True),
    "a bool for anything or null": ("loose", True, True),
}


@pytest.mark.parametrize(("name", "value", "built"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_value_of_the_right_type_arrives(name: str, value: Any, built: Any):
    assert getattr(_bind(**{name: value}).build(), name) == built


REFUSED = {
    "a word for an int": ("count", "many", "model.count must be int, got 'many'"),
    "a fraction for an int": ("count", 1.5, "model.count must be int, got 1.5"),
    "a bool for an int": ("count", True, "model.count must be int, got True"),
    "null for an int": ("count", None, "model.count must be int, got None"),
    "a word for a float": ("rate", "1e-3x", "model.rate must be float, got '1e-3x'"),
    "a bool for a float": ("rate", False, "model.rate must be float, got False"),
    "an int for a word": ("word", 3, "model.word must be str, got 3"),
    "an int for a bool": ("flag", 1, "model.flag must be bool, got 1"),
    "a word where null may be": ("maybe", "x", "model.maybe must be int or null, got 'x'"),
    "none of the words": ("choice", "c", "model.choice must be 'a' or 'b', got 'c'"),
    "a word for a list": ("numbers", "12", "model.numbers must be a list of int, got '12'"),
    "a wrong first item": ("numbers", ["x", 2], "model.numbers must be a list of int, got ['x', 2]"),
    "a wrong last item": ("numbers", [1, 2, "x"], "model.numbers must be a list of int, got [1, 2, 'x']"),
    "a tuple too short": ("pair", [0.9], "model.pair must be a list of float, float, got [0.9]"),
    "a word for one of three": (
        "maybe_pair",
        "x",
        "model.maybe_pair must be a list of int, int, int, or null, got 'x'",
    ),
}


@pytest.mark.parametrize(("name", "value", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_a_value_of_the_wrong_type_is_one_sentence_with_the_right_one(name: str, value: Any, sentence: str):
    with pytest.raises(UserError) as excinfo:
        _bind(**{name: value})
    assert str(excinfo.value).startswith(sentence)
    assert str(excinfo.value).endswith(f"({HERE}.Thing)")


ENTRIES = {
    "nothing": (None, "model has no _target_, so there is nothing to build"),
    "no target": ({"width": 3}, "model has no _target_"),
    "a word": ("relu", "model has no _target_"),
    "no package": ({"_target_": "no.such.Thing"}, "there is no module no. Use package.module.Name"),
    "no module": ({"_target_": "torch.no_such.Thing"}, "torch has no no_such"),
    "no name": ({"_target_": "torch.nn.Relu"}, "torch.nn has no Relu; did you mean ReLU?"),
    "a word alone": ({"_target_": "relu"}, "there is no module relu"),
    "an empty path": ({"_target_": ""}, "_target_="),
    "no name of a class": ({"_target_": f"{HERE}.Thing.paint"}, f"{HERE}.Thing has no paint"),
    "a number": ({"_target_": f"{HERE}.not_callable"}, "must be callable, got an object of type int"),
    "a misspelt argument": (
        {"_target_": f"{HERE}.Needs", "frist": 1},
        f"model.frist: {HERE}.Needs has no argument frist; did you mean first? (arguments: first, second)",
    ),
    "an argument of nothing": ({"_target_": f"{HERE}.Colour.mro", "x": 1}, "has no argument x (arguments: none)"),
    "a missing argument": ({"_target_": f"{HERE}.Needs"}, f"{HERE}.Needs needs the argument first. Set model.first=…"),
}


@pytest.mark.parametrize(("entry", "sentence"), ENTRIES.values(), ids=ENTRIES.keys())
def test_an_entry_that_cannot_be_bound_is_one_sentence(entry: Any, sentence: str):
    with pytest.raises(UserError) as excinfo:
        bind(entry, "model")
    assert sentence in str(excinfo.value)
    assert str(excinfo.value).startswith("model")


def test_a_package_that_a_module_lacks_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "needs_more_for_test_targets.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="needs the package no_such_package, which is not installed"):
        bind({"_target_": "needs_more_for_test_targets.Thing"}, "model")


def test_an_entry_may_lack_arguments_where_it_is_only_shown():
    target = bind({"_target_": f"{HERE}.Needs", "second": 1}, "model", complete=False)
    assert target.missing_arguments() == ["first"]
    assert _bind("Needs", offered=frozenset({"first"})).missing_arguments() == []


def test_what_the_run_offers_fills_what_the_config_leaves_out():
    offered = frozenset({"seed", "unknown"})
    assert _bind("seeded", offered=offered).build(seed=1, unknown=2) == (1, 1)
    assert _bind("seeded", offered=offered, seed=5, size=3).build(seed=1) == (5, 3)
    assert _bind("Needs", offered=frozenset({"first"})).build(first=4) == Needs(4)


def test_what_is_offered_is_taken_where_there_is_an_argument_for_it_and_the_config_gives_none():
    offered = frozenset({"seed", "unknown"})
    assert _bind("seeded", offered=offered).uses_injected("seed")
    assert not _bind("seeded", offered=offered, seed=5).uses_injected("seed")
    assert not _bind("seeded", offered=offered).uses_injected("unknown")
    assert not _bind("seeded").uses_injected("seed")


def test_the_effective_arguments_are_the_given_and_the_default_ones_but_not_the_runs():
    target = _bind("seeded", offered=frozenset({"seed"}), size=2)
    assert target.arguments() == {"_target_": f"{HERE}.seeded", "size": 2}
    assert _bind("seeded").arguments() == {"_target_": f"{HERE}.seeded", "seed": 7, "size": 1}
    assert _bind("seeded", offered=frozenset({"seed"}), seed=3).arguments()["seed"] == 3


def test_the_effective_arguments_are_plain_and_hold_no_address():
    arguments = _bind("defaults").arguments()
    assert json.loads(json.dumps(arguments)) == arguments
    assert arguments["kind"] == "builtins.int"
    assert arguments["colour"].startswith(f"{HERE}.Colour")
    assert "0x" not in json.dumps(arguments)
    assert json.loads(json.dumps(_bind(pair=[1, 2]).arguments()))["pair"] == [1, 2]


def test_a_callable_of_any_keywords_gets_them_all():
    assert _bind("takes_anything", a=1, b=[2]).build() == {"a": 1, "b": [2]}


def test_what_a_target_refuses_is_a_sentence_with_the_place():
    with pytest.raises(UserError, match=rf"^model: 3 is impossible \(raised by {HERE}.refuses\)$"):
        _bind("refuses", value=3).build()


def test_what_lightning_refuses_is_told_with_the_place_too():
    entry = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val/loss", "mode": "up"}
    with pytest.raises(UserError, match=r"^callbacks.early_stopping: `mode` can be min, max, got up \(raised by "):
        bind(entry, "callbacks.early_stopping").build()


def test_an_entry_inside_an_entry_is_built_first():
    entry = {"_target_": "fractions.Fraction", "numerator": 3, "denominator": 4}
    assert _bind(anything=entry).build().anything == Fraction(3, 4)
    assert _bind("takes_anything", parts=[entry, 1]).build() == {"parts": [Fraction(3, 4), 1]}


def test_entries_in_a_list_are_built_whatever_the_hint_of_the_list():
    entry = {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}
    assert list(_bind(fractions=[entry]).build().fractions) == [Fraction(1, 2)]


def test_a_mistake_inside_an_entry_is_told_with_its_place():
    with pytest.raises(UserError, match=r"^model.anything.numer: .*has no argument numer"):
        _bind(anything={"_target_": "fractions.Fraction", "numer": 3}).build()


def test_a_factory_builds_a_new_one_at_each_call():
    make = _bind("Needs", offered=frozenset({"first"})).factory(first=1)
    first, second = make(), make()
    assert first == second == Needs(1)
    assert first is not second


FUNCTIONS = {
    "a builtin": ("torch.tanh", {}, torch.tanh),
    "a function": ("torch.nn.functional.softplus", {}, torch.nn.functional.softplus),
    "with an argument": ("torch.nn.functional.elu", {"alpha": 0.5}, lambda x: torch.nn.functional.elu(x, 0.5)),
}


@pytest.mark.parametrize(("path", "given", "expected"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_a_function_of_tensors_is_itself_what_is_wanted(
    path: str, given: dict[str, Any], expected: Callable[[torch.Tensor], torch.Tensor]
):
    x = torch.linspace(-2, 2, 5)
    function = bind({"_target_": path, **given}, "activation", num_tensor_args=1).build()
    assert torch.equal(function(x), expected(x))


def test_a_function_of_tensors_gets_what_the_run_offers_too():
    bound = bind({"_target_": "torch.nn.functional.elu"}, "activation", frozenset({"alpha"}), num_tensor_args=1)
    x = torch.linspace(-2, 2, 5)
    assert torch.equal(bound.build(alpha=3.0)(x), torch.nn.functional.elu(x, 3.0))


def test_a_class_is_built_even_where_a_function_would_do():
    assert isinstance(bind({"_target_": "torch.nn.ReLU"}, "activation", num_tensor_args=1).build(), torch.nn.ReLU)


def test_a_function_of_too_many_tensors_is_refused():
    with pytest.raises(UserError, match="needs the argument input"):
        bind({"_target_": "torch.nn.functional.mse_loss"}, "activation", num_tensor_args=1)


def test_a_static_method_can_be_a_target():
    assert bind({"_target_": "datetime.date.fromisoformat"}, "x").path == "datetime.date.fromisoformat"
    assert bind({"_target_": "datetime.date", "year": 2024, "month": 2, "day": 1}, "x").build() == dt.date(2024, 2, 1)


@pytest.mark.parametrize(("name", "built"), [("around", (7, 2)), ("around_what_is_handed_on", (3, 2))])
def test_what_stands_in_an_entry_gets_what_the_run_offers_only_where_it_is_handed_on(name: str, built: object):
    inner = {"_target_": f"{HERE}.seeded", "size": 2}
    assert _bind(name, inner=inner).build(seed=3) == built
    nested = {"_target_": f"{HERE}.{name}", "inner": inner}
    assert _bind(name, inner=nested).build(seed=3) == built
