"""What is searched: Hydra's sweep grammar read as distributions, conditions, combinations."""

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from stormproof_train.errors import UserError
from stormproof_train.search.space import (
    MAX_COMBINATIONS,
    Parameter,
    Space,
    format_overrides,
    read_parameter,
    summarize_params,
)

CHOICES = {"activation": ["elu", "leaky_relu", "relu", "relu6", "tanh"]}

GRAMMAR = {
    "activation=relu,elu": CategoricalDistribution(["relu", "elu"]),
    "activation=choice(relu,elu,relu)": CategoricalDistribution(["relu", "elu"]),
    "activation=glob(*relu*)": CategoricalDistribution(["leaky_relu", "relu", "relu6"]),
    "activation=glob(*relu*,exclude=relu6)": CategoricalDistribution(["leaky_relu", "relu"]),
    "model.norm=batch,null": CategoricalDistribution(["batch", "null"]),
    "model.widths='[8,8],[16]'": None,
    "model.widths=[8,8],[16]": CategoricalDistribution(["[8,8]", "[16]"]),
    "optimizer.lr=0.1,1e-3": CategoricalDistribution(["0.1", "0.001"]),
    "model.dropout=interval(0,0.5)": FloatDistribution(0.0, 0.5),
    "optimizer.lr=tag(log,interval(1e-4,1e-1))": FloatDistribution(1e-4, 1e-1, log=True),
    "++optimizer.lr=tag(log,interval(1e-4,1e-1))": FloatDistribution(1e-4, 1e-1, log=True),
    "model.width=int(interval(16,512))": IntDistribution(16, 512),
    "model.width=tag(log,int(interval(16,512)))": IntDistribution(16, 512, log=True),
    "model.depth=range(1,5)": IntDistribution(1, 4),
    "model.width=range(16,65,16)": IntDistribution(16, 64, step=16),
    "model.depth=range(4,0,-1)": IntDistribution(1, 4),
    "model.dropout=range(0,0.5,0.25)": FloatDistribution(0.0, 0.25, step=0.25),
    "seed=1": None,
    "model.widths=[8,8]": None,
}

UNSEARCHABLE = {
    "model.dropout=interval(0.5,0)": "an interval must be increasing",
    "model.dropout=interval(0.5,0.5)": "an interval must be increasing",
    "optimizer.lr=tag(log,interval(0,1))": "start above 0 with log",
    "activation=glob(nothing*)": "the pattern matches no choice",
    "model.depth=range(3,3)": "the range is empty",
    "model.dropout=tag(log,range(0.1,0.5,0.1))": "use tag(log,interval(…))",
}


@pytest.mark.parametrize(("word", "expected"), GRAMMAR.items(), ids=GRAMMAR)
def test_a_word_in_hydras_grammar_is_a_distribution(word: str, expected: BaseDistribution | None):
    parameter = read_parameter(word, CHOICES.__getitem__)
    assert (parameter and parameter.distribution) == expected
    if parameter is not None:
        assert parameter.key == word.lstrip("+").partition("=")[0]


@pytest.mark.parametrize(("word", "expected"), UNSEARCHABLE.items(), ids=UNSEARCHABLE)
def test_what_cannot_be_searched_is_one_sentence(word: str, expected: str):
    with pytest.raises(UserError) as error:
        read_parameter(word, CHOICES.__getitem__)
    assert str(error.value).startswith(f"{word}: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_space_of_nothing_says_how_to_search():
    with pytest.raises(
        UserError, match=r"^there is nothing to search: give a setting several values, such as activation=relu,elu"
    ):
        Space([])


WITH_ALPHA = frozenset({"elu", "celu"})


def _space() -> Space:
    return Space([
        Parameter("activation.alpha", CategoricalDistribution(["0.5", "1"]), {"activation": WITH_ALPHA}),
        Parameter("model.depth", IntDistribution(1, 2)),
        Parameter("activation", CategoricalDistribution(["relu", "elu"])),
    ])  # fmt: skip


def test_a_choice_is_made_before_what_depends_on_it():
    assert [parameter.key for parameter in _space().parameters] == ["activation", "model.depth", "activation.alpha"]


def test_a_setting_below_a_choice_exists_only_where_that_is_taken():
    trials = [
        optuna.trial.FixedTrial({"activation": choice, "model.depth": 1, "activation.alpha": "1"})
        for choice in ("relu", "elu")
    ]
    relu, elu = (_space().suggest(trial) for trial in trials)  # pyright: ignore[reportArgumentType]
    assert relu == {"activation": "relu", "model.depth": 1}
    assert elu == {"activation": "elu", "model.depth": 1, "activation.alpha": "1"}


def test_all_combinations_are_listed_once_and_without_what_does_not_exist():
    relu = [{"activation": "relu", "model.depth": depth} for depth in (1, 2)]
    elu = [
        {"activation": "elu", "model.depth": depth, "activation.alpha": alpha}
        for depth in (1, 2)
        for alpha in ("0.5", "1")
    ]
    assert _space().combinations() == [*relu, *elu]


def test_a_range_of_fractions_is_listed_to_its_end():
    space = Space([Parameter("model.dropout", FloatDistribution(0.0, 0.5, step=0.25))])
    assert space.combinations() == [{"model.dropout": fraction} for fraction in (0.0, 0.25, 0.5)]


@pytest.mark.parametrize(
    "distribution",
    [FloatDistribution(0, 1), IntDistribution(1, 9, log=True), IntDistribution(1, MAX_COMBINATIONS + 1)],
    ids=["an interval", "a logarithmic one", "too many"],
)
def test_what_cannot_be_counted_has_no_combinations(distribution: BaseDistribution):
    assert Space([Parameter("model.width", distribution)]).combinations() is None


def test_as_plain_values_a_space_says_what_the_report_needs():
    choice, whole, below = (parameter.as_dict() for parameter in _space().parameters)
    assert choice["kind"], choice["choices"] == ("choice", ["relu", "elu"])
    assert (whole["kind"], whole["low"], whole["high"], whole["step"], whole["log"]) == ("int", 1, 2, 1, False)
    assert below["only_with"] == {"activation": ["celu", "elu"]}


def test_a_float_becomes_a_word_in_all_its_digits_and_four_of_them_for_a_person():
    values = {"optimizer.lr": 0.1 + 0.2, "activation": "elu", "model.width": 16}
    assert format_overrides(values) == ["optimizer.lr=0.30000000000000004", "activation=elu", "model.width=16"]
    assert summarize_params(values) == "optimizer.lr=0.3 activation=elu model.width=16"
