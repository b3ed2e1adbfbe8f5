"""The words of a search: what is the search's, what every trial's, what is searched."""

from pathlib import Path

import pytest

from stormproof_train.cli.search import check_space
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.error_messages import describe_error
from stormproof_train.errors import UserError
from stormproof_train.search.arguments import Arguments, Composer, parse_arguments
from stormproof_train.search.settings import Settings
from tests.support.cases import slow_except

LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def read_arguments(*overrides: str) -> Arguments:
    return parse_arguments(overrides, conf_dir())


def conditions(arguments: Arguments) -> dict[str, dict[str, list[str]]]:
    return {
        parameter.key: {group: sorted(by) for group, by in parameter.only_with.items()}
        for parameter in arguments.space.parameters
    }


def test_words_are_the_searchs_every_trials_or_searched():
    arguments = read_arguments(
        "activation=relu,elu", "trainer.max_epochs=2", "search.trials=7", LR, "++search.seed=3", "data=digits"
    )
    assert arguments.settings == Settings(trials=7, seed=3)
    assert arguments.fixed_overrides == ["trainer.max_epochs=2", "data=digits"]
    assert [parameter.key for parameter in arguments.space.parameters] == ["activation", "optimizer.lr"]
    assert arguments.flags == []


@pytest.mark.slow
def test_an_argument_below_a_choice_exists_with_those_choices_that_have_it():
    arguments = read_arguments(
        "activation=relu,elu,celu", "activation.alpha=interval(0.5,2)", "model.width=int(interval(8,16))"
    )
    assert conditions(arguments) == {
        "activation": {},
        "model.width": {},
        "activation.alpha": {"activation": ["celu", "elu"]},
    }


@pytest.mark.slow
def test_an_argument_that_every_choice_has_is_under_no_condition():
    assert conditions(read_arguments("activation=elu,celu", "activation.alpha=0.5,1")) == {
        "activation": {},
        "activation.alpha": {},
    }


def test_the_last_word_on_a_setting_counts():
    assert [
        parameter.values() for parameter in read_arguments("model.depth=1,2", "model.depth=3,4").space.parameters
    ] == [["3", "4"]]
    arguments = read_arguments("model.depth=1", "model.depth=3,4")
    assert (arguments.fixed_overrides, [parameter.key for parameter in arguments.space.parameters]) == (
        [],
        ["model.depth"],
    )


def config_in(folder: Path) -> list[str]:
    (folder / "search").mkdir()
    (folder / "search" / "mine.yaml").write_text(
        "# Mine.\n_target_: stormproof_train.search.settings.Settings\ntrials: 9\n"
        "space:\n  activation: relu,elu\n  model.dropout: interval(0,0.5)\n"
    )
    return ["--config-dir", str(folder)]


def test_a_config_gives_settings_and_a_space_which_the_command_line_joins(tmp_path: Path):
    flags = config_in(tmp_path)
    arguments = read_arguments(*flags, "search=mine", "search.sampler=random", "model.depth=1,2", "activation=tanh,elu")
    assert (arguments.settings.trials, arguments.settings.sampler) == (9, "random")
    assert arguments.flags == flags
    (activation, *other_parameters) = arguments.space.parameters
    assert activation.values() == ["tanh", "elu"]
    assert {parameter.key for parameter in other_parameters} == {"model.dropout", "model.depth"}


def test_a_value_on_the_command_line_ends_the_search_of_a_config_there(tmp_path: Path):
    arguments = read_arguments(*config_in(tmp_path), "search=mine", "model.dropout=0.1")
    assert arguments.fixed_overrides == ["model.dropout=0.1"]
    assert [parameter.key for parameter in arguments.space.parameters] == ["activation"]


@pytest.mark.slow
def test_the_users_own_choices_are_found_by_a_glob(tmp_path: Path):
    (tmp_path / "activation").mkdir()
    (tmp_path / "activation" / "elu_of_mine.yaml").write_text("# Mine.\n_target_: torch.nn.ELU\n")
    arguments = read_arguments(f"--config-dir={tmp_path}", "activation=glob(elu*)", "activation.alpha=1,2")
    assert arguments.space.parameters[0].values() == ["elu", "elu_of_mine"]
    check_space(arguments, Composer(conf_dir(), arguments.flags))


MISTAKES = {
    "nothing searched": (["activation=relu"], "there is nothing to search: give a setting several values"),
    "an argument that no choice has": (
        ["activation=relu,tanh", "activation.alpha=1,2"],
        "activation.alpha: none of activation=relu,tanh has this argument",
    ),
    "a name of the trials": (["name=a", LR], "name=a: the search sets this itself, use search.name"),
    "names of the trials": (["name=a,b", LR], "name=a,b: the search sets this itself, use search.name"),
    "a folder of the trials": (["runs_dir=a", LR], "runs_dir=a: the search sets this itself, use search.folder"),
    "a way to resume": (["resume=never", LR], "resume=never: the search sets this itself"),
    "a test of each": (["test=true", LR], "test=true: the search sets this itself"),
    "several seeds": (["seed=1,2,3"], "seed=1,2,3: the seed cannot be searched"),
    "a setting of the search searched": ([LR, "search.trials=1,2"], "a setting of the search must have a single value"),
    "a sweep's flag": (["-m", LR], "unknown option -m: a search accepts only --config-dir"),
    "an unknown sampler": ([LR, "search.sampler=genetic"], "search.sampler must be"),
    "a misspelt setting": ([LR, "search.trails=3"], "did you mean trials?"),
    "an objective that is none": ([LR, "search.objectives=loss"], "search: objectives=loss is not supported"),
    "a constraint that is none": (
        [LR, "search.constraints='parameters<9'"],
        "search: constraints=parameters<9 is not valid",
    ),
    "several searches": ([LR, "search=default,other"], "a setting of the search must have a single value"),
}


@pytest.mark.parametrize(("words", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(words: list[str], expected: str):
    with pytest.raises(UserError) as error:
        read_arguments(*words)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


VALUES = {
    "activation=relu,elo": "activation=elo does not exist. Choices: elu, ",
    "model.depht=1,2": "did you mean depth?",
    "model.width=8,wide": "model.width=wide cannot be searched: ",
    "nothing=1,2": "unknown setting or group nothing",
}


@pytest.mark.slow
@pytest.mark.parametrize(("word", "expected"), VALUES.items(), ids=VALUES)
def test_each_value_is_tried_before_anything_is_trained(word: str, expected: str):
    with pytest.raises(Exception, match=r"\w") as error:  # what is Hydra's becomes a sentence in cli.main
        check_space(read_arguments(word), Composer(conf_dir()))
    sentence, code = describe_error(error.value)
    assert expected in sentence
    assert code == 2


REFUSED_BY_A_RUN = [
    (["model.dropout=interval(0,1.5)"], r"model.dropout=1.5 cannot be searched: model: `dropout` must be in"),
    (["model.width=interval(8,16)"], r"must be int, got .*; use int\(interval\(…\)\)$"),
    (["model.width=8,16", "data=csv", "data.path=nowhere.csv", "data.target=y"], "nowhere.csv"),
    (
        ["model.width=8,16", "search.objectives=val/rmse"],
        "validation of these data measures val/accuracy, val/f1, val/loss, not",
    ),
    (["model.width=8,16", "trainer.max_epochs=-1"], "search.pruner=asha needs runs of finite length"),
    (["loss=cross_entropy,mse", "search.objectives=val/accuracy"], "loss=mse cannot be searched: "),
]


@pytest.mark.parametrize(("words", "told"), slow_except(REFUSED_BY_A_RUN, REFUSED_BY_A_RUN[:1]))
def test_what_only_a_run_would_find_is_told_before_one_begins(words: list[str], told: str):
    with pytest.raises(UserError, match=told):
        check_space(read_arguments(*words), Composer(conf_dir()))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data=digits,diabetes"], "data is searched, so val/loss is not comparable"),
        (["trainer.max_epochs=2,3"], "trainer.max_epochs is searched, but search.pruner=asha compares trials"),
        (["optimizer.lr=tag(lgo,interval(1e-4,1e-1))"], "the tag lgo is unknown, only log"),
    ],
)
def test_what_would_compare_nothing_is_refused(words: list[str], told: str):
    with pytest.raises(UserError, match=told):
        parse_arguments(words, conf_dir())
