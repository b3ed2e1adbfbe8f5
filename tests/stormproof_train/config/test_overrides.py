import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from stormproof_train.config.overrides import (
    add_requeue_limit,
    check_option_lists,
    describe_overridden,
    normalize_overrides,
)
from stormproof_train.errors import UserError

WORDS = {
    "an argument": ("activation.alpha=0.5", "++activation.alpha=0.5"),
    "a deeper one": ("callbacks.early_stopping.patience=3", "++callbacks.early_stopping.patience=3"),
    "several values": ("model.width=32,64", "++model.width=32,64"),
    "a value with an equals sign": ("model.note=a=b", "++model.note=a=b"),
    "an empty value": ("data.root=", "++data.root="),
    "a choice": ("activation=elu", "activation=elu"),
    "a setting": ("seed=1", "seed=1"),
    "a setting with dots in its value": ("runs_dir=../a.b/c", "runs_dir=../a.b/c"),
    "a setting whose value looks like an argument": ("name=a.b=c", "name=a.b=c"),
    "already added": ("+model.width=3", "+model.width=3"),
    "already added or changed": ("++model.width=3", "++model.width=3"),
    "removed": ("~callbacks.step_timer", "~callbacks.step_timer"),
    "one of Hydra's own": ("hydra.sweep.dir=x", "hydra.sweep.dir=x"),
    "a name that begins like Hydra's": ("hydrant.depth=1", "++hydrant.depth=1"),
    "a value with letters that Hydra lacks": ("data.path=bücher/a b.csv", "++data.path='bücher/a b.csv'"),
    "several such values": ("name=läuft,runs,日本", "name='läuft',runs,'日本'"),
    "a quoted value": ("name='läuft'", "name='läuft'"),
    "a list with such a value": ("data.features=[größe]", "++data.features=['größe']"),
    "a flag": ("-m", "-m"),
    "a long flag with a value": ("--config-dir=my.configs/here", "--config-dir=my.configs/here"),
    "a word": ("train", "train"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("word", "expected"), WORDS.values(), ids=WORDS.keys())
def test_only_an_argument_gets_a_sign(word: str, expected: str):
    assert normalize_overrides([word]) == [expected]


def test_a_list_is_refused_where_one_choice_is_taken():
    groups = {"activation", "callbacks", "augmentation", "experiment"}
    with pytest.raises(UserError, match=r"activation=\[relu, elu\]: a run has one .*, use -m activation=relu,elu$"):
        check_option_lists(["seed=1", "activation=[relu, elu]"], groups)
    fine = ["callbacks=[ema,early_stopping]", "augmentation=[crop_flip,mixup]", "activation=[relu]", "x=[1,2]"]
    check_option_lists([*fine, "model.widths=[3,4]", "activation=relu,elu", "activation=[relu"], groups)


@pytest.mark.parametrize(
    ("words", "warnings"),
    [
        (["activation=elu", "activation=relu"], ["activation=elu has no effect: activation=relu overrides it"]),
        (
            ["model.width=1", "seed=1", "++model.width=2"],
            ["model.width=1 has no effect: ++model.width=2 overrides it"],
        ),
        (
            ["-m", "seed=1,2", "seed=3", "seed=4"],
            [f"{word} has no effect: seed=4 overrides it" for word in ("seed=1,2", "seed=3")],
        ),
        (["seed=1", "seed=1", "search.seed=2", "model=mlp", "model.width=1", "~callbacks.ema", "-m", "-m"], []),
    ],
)
def test_a_setting_overridden_is_warned_of(words: list[str], warnings: list[str]):
    assert describe_overridden(words) == warnings


def test_hydra_reads_a_value_with_any_letters():
    overrides = ["name=läuft", "data.path=/home/jürgen/a b.csv", "runs_dir=данные", "callbacks=none"]
    parsed = OverridesParser.create().parse_overrides(normalize_overrides(overrides))
    assert [override.value() for override in parsed] == ["läuft", "/home/jürgen/a b.csv", "данные", "none"]


def test_flags_go_behind_the_overrides_and_each_kind_stays_in_order():
    overrides = ["activation=elu", "-m", "model.width=1,2", "--config-dir", "my", "+x=1", "~y", "-cn", "other"]
    assert normalize_overrides(overrides) == [
        "activation=elu", "++model.width=1,2", "+x=1", "~y", "-m", "--config-dir", "my", "-cn", "other"
    ]  # fmt: skip


@settings(database=None, deadline=None)
@given(st.lists(st.text(alphabet="ab.=+~-_1 ", max_size=12)))
def test_no_word_is_lost_and_a_second_pass_changes_nothing(words: list[str]):
    once = normalize_overrides(words)
    assert sorted(word.removeprefix("++") for word in once) == sorted(word.removeprefix("++") for word in words)
    assert normalize_overrides(once) == once


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "seed=1,2"],
        ["-m", "hydra/launcher=submitit_slurm", "hydra.launcher.max_num_timeout=0"],
        ["-m", "hydra/launcher=submitit_slurm", "++hydra.launcher.max_num_timeout=3"],
    ],
    ids=["another launcher", "never", "a number, added or changed"],
)
def test_how_often_a_job_is_requeued_is_the_users_to_say(words: list[str]):
    assert add_requeue_limit(words) == words


def test_the_warning_of_an_overridden_setting_contains_no_secret():
    (warning,) = describe_overridden(["logger.api_key=hunter2", "logger.api_key=hunter3"])
    assert "hunter" not in warning
